"""Learning a solver by Gauss-Newton steps with Levenberg's and Marquardt's damping: the loss is a sum of squares over a
few dozen numbers, so a dozen steps do what first-order methods need thousands for.

The sample's derivatives by the parameters are carried forward through the solver, evaluation by evaluation. The table's
own are exact; the network's, along each parameter's direction, are forward differences. So the network is only ever
evaluated, in whatever precision and however compiled: there is no backward pass, and memory is that of sampling. An
evaluation is perturbed only along the parameters that act before it.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from s4spipe import ranks
from s4spipe.distill.fit import kind
from s4spipe.errors import UserError
from s4spipe.families import Family
from s4spipe.files import Scratch
from s4spipe.noise import NoiseSchedule
from s4spipe.pairs import Pairs, batches
from s4spipe.sampling import precision, sample

DIFFERENCE = 3e-3  # of a forward difference, in shares of a state's size and of a time
TRIES = 6  # of growing damping, before a step is given up
FIRST, LEAST = 1e-2, 1e-5  # damping


class Parameters:
    """Those of a student that learn, as one vector."""

    def __init__(self, student: Family, learns: tuple[str, ...]):
        self.student = student
        self.chosen = {name: p for name, p in student.named_parameters() if kind(name) in learns}

    def get(self) -> Tensor:
        return torch.cat([p.detach().flatten() for p in self.chosen.values()])

    @torch.no_grad()
    def put(self, vector: Tensor) -> None:
        for p, part in zip(self.chosen.values(), self._parts(vector), strict=True):
            p.copy_(part)

    def _parts(self, vector: Tensor) -> list[Tensor]:
        sizes = [p.numel() for p in self.chosen.values()]
        return [part.view_as(p) for part, p in zip(vector.split(sizes), self.chosen.values(), strict=True)]

    def table(self) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
        """c_0, c, W and t_c of the student's tableau, and their derivatives by the vector, whose entries come last."""
        n = self.student.nfe

        def entries(vector: Tensor) -> Tensor:
            given = dict(zip(self.chosen, self._parts(vector), strict=True))
            table = torch.func.functional_call(self.student, given)
            return torch.cat([table.c_0[None], table.c, table.W.flatten(), table.t_c])

        def split(whole: Tensor) -> tuple[Tensor, ...]:
            c_0, c, W, t_c = whole.split([1, n, n * n, n])
            return c_0[0], c, W.unflatten(0, (n, n)), t_c

        vector = self.get()
        with torch.enable_grad():
            derivatives = torch.autograd.functional.jacobian(entries, vector)
        return split(entries(vector).detach()), split(derivatives)


def fit(
    student: Family,
    learns: tuple[str, ...],
    denoiser: Callable,
    training: Pairs,
    validation: Pairs,
    *,
    batch_size: int,
    at_once: int,
    steps: int,
    seed: int,
    scratch: Scratch,
    description: str = "fit",
) -> list[dict]:
    """Learn `student` in place, leave it at the parameters best on `validation`, and return the losses of every step.

    Minimises the mean squared difference between the student's samples and the teacher's. Every step draws `batch_size`
    pairs anew and solves (H + mu diag H) delta = -g, H = J^T J (Levenberg 1944; Marquardt 1963); mu grows until the
    loss of these pairs falls, and shrinks after that. The history is as that of `s4spipe.distill.fit.fit`, a step for
    an epoch, without moves, and with the denoiser's evaluations so far.

    Several processes divide every batch. Progress is saved to `scratch` after every step.
    """
    parameters, nfe = Parameters(student, learns), student.nfe

    @torch.no_grad()
    def loss(pairs: Pairs) -> float:
        """Infinite where the parameters are no solver: where a schedule does not fall, for instance."""
        own, total = ranks.share(torch.arange(len(pairs))), torch.zeros(1, dtype=torch.float64)
        try:
            table = student()
        except UserError:
            return float("inf")
        for index in batches(own, at_once):
            some = pairs.take(index)
            total += (sample(denoiser, table, some.x_T, some.condition) - some.x_0).cpu().double().square().sum()
        return ranks.add_up(total).item() / pairs.x_0.numel()

    if not (state := scratch.load("fit")):
        first = {"epoch": 0, "learns": "", "train": None, "validation": loss(validation), "evaluations": 0}
        state = {"now": parameters.get(), "best": parameters.get(), "damping": FIRST, "history": [first]}
    history, damping = state["history"], state["damping"]
    parameters.put(state["now"])
    ranks.wait()  # all have read how far the fit was before one goes on

    rest = range(len(history) - 1, steps)
    for step in (bar := ranks.progress(rest, description, steps, initial=len(history) - 1)):
        order = torch.randperm(len(training), generator=torch.Generator().manual_seed(seed * 100_003 + step))
        batch, before = training.take(order[:batch_size]), parameters.get()
        start, gradient, curvature, spent = linearised(parameters, denoiser, batch, at_once)
        floor = 1e-9 * curvature.diag().max()
        for _ in range(TRIES):
            damped = curvature + damping * torch.diag(curvature.diag() + floor)
            parameters.put(before - torch.linalg.solve(damped, gradient))
            student.clip()
            spent += len(batch) * nfe
            if loss(batch) < start:
                damping = max(damping / 5, LEAST)
                break
            damping *= 5
        else:
            parameters.put(before)
        row = {"epoch": step + 1, "learns": "+".join(learns), "train": start}
        row["validation"] = loss(validation)
        row["evaluations"] = history[-1]["evaluations"] + spent + len(validation) * nfe
        best = parameters.get() if row["validation"] < min(r["validation"] for r in history) else state["best"]
        history.append(row)
        bar.set_postfix(validation=f"{row['validation']:.2e}")
        state = {"now": parameters.get(), "best": best, "damping": damping, "history": history}
        if ranks.first():
            scratch.save("fit", state)

    parameters.put(state["best"])
    return history


@torch.no_grad()
def linearised(
    parameters: Parameters, denoiser: Callable, pairs: Pairs, at_once: int
) -> tuple[float, Tensor, Tensor, int]:
    """The loss, J^T r [P] and J^T J [P, P] of the residuals r, each over their number, and the evaluations spent."""
    values, derivatives = parameters.table()
    count = len(parameters.get())
    residuals, slopes, products, spent = 0.0, torch.zeros(count).double(), torch.zeros(count, count).double(), 0
    for index in batches(ranks.share(torch.arange(len(pairs))), max(1, at_once // count)):
        some = pairs.take(index)
        end, jacobian, calls = forward(values, derivatives, parameters.student.noise, denoiser, some)
        residual, jacobian = (end - some.x_0).flatten().cpu().double(), jacobian.flatten(1).cpu().double()
        residuals += (residual @ residual).item()
        slopes += jacobian @ residual
        products += jacobian @ jacobian.T
        spent += calls
    sums = torch.cat([torch.tensor([residuals, spent], dtype=torch.float64), slopes, products.flatten()])
    totals, slopes, products = ranks.add_up(sums).split([2, count, count**2])
    n = pairs.x_0.numel()
    return totals[0].item() / n, slopes / n, products.view(count, count) / n, int(totals[1])


def forward(
    values: tuple[Tensor, ...], derivatives: tuple[Tensor, ...], noise: NoiseSchedule, denoiser: Callable, pairs: Pairs
) -> tuple[Tensor, Tensor, int]:
    """The samples [B, ...], their derivatives by the parameters [P, B, ...], and the evaluations that took."""
    x_T, condition, rows = pairs.x_T.to(precision(pairs.x_T.device)), pairs.condition, len(pairs)
    (c_0, c, W, t_c), (s_0, s, S, s_t) = ([v.to(x_T) for v in vs] for vs in (values, derivatives))
    wide = (-1,) + (1,) * x_T.ndim  # a number for each parameter, against [P, B, ...]
    y, dy = c_0 * x_T, s_0.view(wide) * x_T
    d, dd, spent = [], [], rows * len(c)
    for i in range(len(c)):
        t = t_c[i]
        d.append(denoiser(y, t, condition))
        size = (noise.alpha(t) ** 2 + noise.sigma(t) ** 2).sqrt()
        extent = dy.flatten(1).square().mean(1).sqrt() / size + s_t[i].abs() / t.abs()
        slope = torch.zeros_like(dy)
        if len(moved := extent.nonzero().flatten()):
            h = DIFFERENCE / extent[moved]
            states = (y + h.view(wide) * dy[moved]).flatten(0, 1)
            times = (t + h * s_t[i][moved]).repeat_interleave(rows)
            repeated = None if condition is None else condition.repeat(len(moved))
            there = denoiser(states, times, repeated).view(len(moved), *x_T.shape)
            slope[moved] = (there - d[i]) / h.view(wide)
            spent += len(states)
        dd.append(slope)
        y = c[i] * x_T + sum(W[i, j] * d[j] for j in range(i + 1))
        dy = s[i].view(wide) * x_T + sum(S[i, j].view(wide) * d[j] + W[i, j] * dd[j] for j in range(i + 1))
    return y, dy, spent
