"""Learning a solver by Gauss-Newton steps with Levenberg's and Marquardt's damping: a few dozen numbers, with which a
dozen steps do what first-order methods need thousands for.

A pair's distance is a function of ||r||^2, r = student's sample - teacher's, so its curvature by the parameters is, to
Gauss and Newton, w J^T J with J the derivatives of the sample and w = 2 d distance / d ||r||^2. J itself is never made:
v^T J, for a random v of independent unit normal entries, is one backward pass whatever the number of parameters, and
E (v^T J)^T (v^T J) = J^T J. So a step costs as much as five passes through the solver.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from s4spipe import ranks
from s4spipe.distill import adjoint
from s4spipe.distill.fit import kind
from s4spipe.errors import UserError
from s4spipe.families import Family
from s4spipe.files import Scratch
from s4spipe.pairs import Pairs, batches
from s4spipe.sampling import sample
from s4spipe.tableau import Tableau

PROBES = 2  # random v for each pair
TRIES = 6  # of growing damping, before a step is given up
FIRST, LEAST = 1e-2, 1e-5  # damping
KEPT = 3  # steps whose mean is tried in the end


class Parameters:
    """Those of a student that learn, as one vector."""

    def __init__(self, student: Family, learns: tuple[str, ...]):
        self.student = student
        self.chosen = {name: p for name, p in student.named_parameters() if kind(name) in learns}

    def get(self) -> Tensor:
        return torch.cat([p.detach().flatten() for p in self.chosen.values()])

    @torch.no_grad()
    def put(self, vector: Tensor) -> None:
        """Set them, within their ranges."""
        for p, part in zip(self.chosen.values(), self._parts(vector), strict=True):
            p.copy_(part)
        self.student.clip()

    def _parts(self, vector: Tensor) -> list[Tensor]:
        sizes = [p.numel() for p in self.chosen.values()]
        return [part.view_as(p) for part, p in zip(vector.split(sizes), self.chosen.values(), strict=True)]

    def table(self) -> Tableau | None:
        """Nothing where the parameters are no solver: where a schedule does not fall, for instance."""
        try:
            return self.student()
        except UserError:
            return None

    def jacobian(self) -> Tensor:
        """[entries, P]: the derivatives of the table's entries by the parameters."""

        def entries(vector: Tensor) -> Tensor:
            given = dict(zip(self.chosen, self._parts(vector), strict=True))
            return adjoint.entries(torch.func.functional_call(self.student, given))

        with torch.enable_grad():
            return torch.autograd.functional.jacobian(entries, self.get())


def fit(
    student: Family,
    learns: tuple[str, ...],
    denoiser: Callable,
    training: Pairs,
    validation: Pairs,
    distance: Callable[[Tensor, Tensor], Tensor],
    *,
    batch_size: int,
    at_once: int,
    steps: int,
    seed: int,
    scratch: Scratch,
    description: str = "fit",
) -> list[dict]:
    """Learn `student` in place, leave it at the parameters best on `validation`, and return the losses of every step.
    The mean of the best steps takes part (see `mix`), and has the last row.

    Minimises the mean `distance` (l2 or pseudo_huber: a function of the difference's norm) of the student's samples to
    the teacher's. Every step draws `batch_size` pairs anew and solves (H + mu diag H) delta = -g (Levenberg 1944;
    Marquardt 1963); mu grows until the loss of these pairs falls, and shrinks after that. The history is as that of
    `s4spipe.distill.fit.fit`, a step for an epoch, without moves, and with the network's evaluations so far, where a
    backward pass through one counts as one.

    Several processes divide every batch. Progress is saved to `scratch` after every step.
    """
    parameters = Parameters(student, learns)

    def valid(table: Tableau | None) -> float:
        return mean_distance(table, denoiser, validation, distance, at_once)

    if not (state := scratch.load("fit")):
        start = valid(parameters.table())
        first = {"epoch": 0, "learns": "", "train": None, "validation": start, "evaluations": 0}
        best = [(start, parameters.get())]
        state = {"now": parameters.get(), "best": best, "damping": FIRST, "history": [first]}
    history, damping = state["history"], state["damping"]
    parameters.put(state["now"])
    ranks.wait()  # all have read how far the fit was before one goes on

    rest = range(len(history) - 1, steps)
    for step in (bar := ranks.progress(rest, description, steps, initial=len(history) - 1)):
        number = seed * 100_003 + step
        order = torch.randperm(len(training), generator=torch.Generator().manual_seed(number))
        batch, before = training.take(order[:batch_size]), parameters.get()
        start, gradient, curvature = linearised(parameters, denoiser, batch, distance, number, at_once)
        spent = len(batch) * adjoint.cost(student.nfe, 1 + PROBES)
        floor = 1e-2 * curvature.diag().max() + 1e-30  # one of little effect takes small steps
        for _ in range(TRIES):
            damped = curvature + damping * torch.diag(curvature.diag() + floor)
            parameters.put(before - torch.linalg.solve(damped, gradient))
            spent += len(batch) * student.nfe
            if mean_distance(parameters.table(), denoiser, batch, distance, at_once) < start:
                damping = max(damping / 5, LEAST)
                break
            damping *= 5
        else:
            parameters.put(before)
        row = {"epoch": step + 1, "learns": "+".join(learns), "train": start}
        row["validation"] = valid(parameters.table())
        row["evaluations"] = history[-1]["evaluations"] + spent + len(validation) * student.nfe
        best = sorted([*state["best"], (row["validation"], parameters.get())], key=lambda met: met[0])[:KEPT]
        history.append(row)
        bar.set_postfix(validation=f"{row['validation']:.2e}")
        state = {"now": parameters.get(), "best": best, "damping": damping, "history": history}
        if ranks.first():
            scratch.save("fit", state)

    loss, tried = mix(parameters, state["best"], valid)
    spent = history[-1]["evaluations"] + tried * len(validation) * student.nfe
    last = {"epoch": steps + 1, "learns": "mean", "train": None, "validation": loss, "evaluations": spent}
    return [*history, last]


def mix(
    parameters: Parameters, best: list[tuple[float, Tensor]], loss: Callable[[Tableau | None], float]
) -> tuple[float, int]:
    """Leave the best parameters, or their mean with the next best ones that lower the loss; that loss, and how often
    it was asked for.

    Steps by some of the pairs scatter around the minimum for all: their mean is nearer to it (Polyak and Juditsky
    1992). Which to take is decided one by one, as in Wortsman et al. 2022 (arXiv 2203.05482).
    """
    (low, first), *others = best
    taken = [first]
    for _, other in others:
        parameters.put(sum([*taken, other]) / (len(taken) + 1))
        if (new := loss(parameters.table())) < low:
            low, taken = new, [*taken, other]
    parameters.put(sum(taken) / len(taken))
    return low, len(others)


@torch.no_grad()
def mean_distance(table: Tableau | None, denoiser: Callable, pairs: Pairs, distance: Callable, at_once: int) -> float:
    """Of the samples to the teacher's; infinite without a table, and where samples are no numbers."""
    if table is None:
        return float("inf")
    own, total = ranks.share(torch.arange(len(pairs))), torch.zeros(1, dtype=torch.float64)
    for index in batches(own, at_once):
        some = pairs.take(index)
        total += distance(sample(denoiser, table, some.x_T, some.condition), some.x_0).cpu().double().sum()
    mean = ranks.add_up(total).item() / len(pairs)
    return mean if mean == mean else float("inf")


def linearised(
    parameters: Parameters, denoiser: Callable, pairs: Pairs, distance: Callable, number: int, at_once: int
) -> tuple[float, Tensor, Tensor]:
    """The loss, its slope [P] and its curvature [P, P] to Gauss and Newton; `number` is the probes' seed."""
    table, count = parameters.table(), len(parameters.get())
    by_parameters = parameters.jacobian()
    loss, slope, curvature = 0.0, torch.zeros(count).double(), torch.zeros(count, count).double()
    for index in batches(ranks.share(torch.arange(len(pairs))), at_once):
        some = pairs.take(index)
        path = adjoint.run(denoiser, table, some.x_T, some.condition)
        end = path.end.detach().requires_grad_()
        with torch.enable_grad():
            distances = distance(end, some.x_0)
        (by_end,) = torch.autograd.grad(distances.sum(), end)
        residual = end.detach() - some.x_0
        weight = by_end.flatten(1).norm(dim=1) / residual.flatten(1).norm(dim=1).clamp(min=1e-30)
        root = (weight / PROBES).sqrt().view(-1, *[1] * (end.ndim - 1))
        outputs = torch.stack([by_end, *(root * probe(number, index, end, k) for k in range(PROBES))])
        by_entries = adjoint.derivatives(denoiser, table, path, outputs, some.condition)
        rows = by_entries.cpu().double() @ by_parameters
        loss += distances.detach().sum().item()
        slope += rows[0].sum(0)
        curvature += rows[1:].flatten(0, 1).T @ rows[1:].flatten(0, 1)
    sums = torch.cat([torch.tensor([loss], dtype=torch.float64), slope, curvature.flatten()])
    total, slope, curvature = (ranks.add_up(sums) / len(pairs)).split([1, count, count**2])
    return total.item(), slope, curvature.view(count, count)


def probe(number: int, index: Tensor, like: Tensor, k: int = 0) -> Tensor:
    """The k-th random v of every pair of `index`, in the shape of `like`: the same however the pairs are divided."""
    seeds = ((number * 1_000_003 + row) * PROBES + k for row in index.tolist())
    drawn = [torch.randn(like.shape[1:], generator=torch.Generator().manual_seed(seed % 2**63)) for seed in seeds]
    return torch.stack(drawn).to(like)
