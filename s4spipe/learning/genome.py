"""What a search without gradients searches among: solvers written as a list of decisions, one for each step.

The decisions are those of USF (Liu et al. 2023, arXiv 2312.07243): order, prediction, relaxation, corrector, and times.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields, replace
from math import factorial
from typing import Any

import torch
from torch import Tensor

from s4spipe.models.noise import NoiseSchedule
from s4spipe.runtime.checks import check_plain, is_number, whole
from s4spipe.runtime.errors import UserError, shown, unknown
from s4spipe.sampling.tableau import Tableau
from s4spipe.solvers import registry, timesteps
from s4spipe.solvers.classical import phi
from s4spipe.solvers.multistep import Form, combine, step_weights
from s4spipe.solvers.symbolic import Trace

ORDERS, SCALES = (1, 2, 3, 4), ("exact", "bh1", "bh2")
FORMS: tuple[Form, ...] = ("data", "noise")


@dataclass(frozen=True)
class Step:
    """The decisions of one step.

    Attributes:
        order: 1 to 4, the most evaluations that the step uses; the first steps have fewer.
        form: the prediction that is expanded, "data" or "noise".
        scale: how a formula of two points weighs the first derivative: "exact", as in the integral, or as UniPC does
            with B(h) of its variants "bh1" and "bh2". The predictor of order 2 with "bh2" is that of DPM-Solver++(2M).
        rho: the predictor's first derivative is multiplied by 1 + rho h.
        corrects: whether the state that the step ends at is computed again, one order higher, with the evaluation made
            there (USF's pseudo corrector, UniC of UniPC). In the last step it has no effect.
    """

    order: int = 1
    form: Form = "data"
    scale: str = "exact"
    rho: float = 0.0
    corrects: bool = False


@dataclass(frozen=True)
class Genome:
    """A multistep solver as the decisions of its steps.

    With z = h in the noise form and z = -h in the data form, and f^(n) the n-th derivative by lambda of the prediction,
    step i from lambda_i to lambda_i + h is the Taylor expansion about its start (USF, sec. 3.1)

        data:   x' = (sigma'/sigma) x + alpha' sum_{n<order} h^(n+1) phi_(n+1)(z) f^(n)
        noise:  x' = (alpha'/alpha) x - sigma' sum_{n<order} h^(n+1) phi_(n+1)(z) f^(n)

    The derivatives are those of the polynomial through the newest evaluations.

    Attributes:
        t: [S+1] times, falling.
        steps: [S] decisions.
        afs: the first evaluation is made without the network (see `Trace`), so that NFE = S - 1 instead of S.
    """

    t: tuple[float, ...]
    steps: tuple[Step, ...]
    afs: bool = False

    @property
    def nfe(self) -> int:
        """The evaluations."""
        return len(self.steps) - self.afs

    def tableau(self, noise: NoiseSchedule, name: str = "searched", meta: dict | None = None) -> Tableau:
        """The tableau of this solver.

        Raises UserError for times that do not fall strictly within the range of the noise schedule.
        """
        timesteps.check(self.t)
        if len(self.steps) != len(self.t) - 1 or self.nfe < 1:
            raise UserError(f"a genome has a time more than steps, and at least one evaluation by the network, got "
                            f"{len(self.t)} times and {len(self.steps)} steps")  # fmt: skip
        with torch.device("cpu"):  # whatever torch's default device is
            return self._traced(noise, name, meta)

    def _traced(self, noise: NoiseSchedule, name: str, meta: dict | None) -> Tableau:
        t = torch.tensor(self.t, dtype=torch.float64)
        lam = noise.lambda_(t)
        net = Trace(noise, len(self.steps), self.afs)
        state = y = net.x_T
        history: dict[str, list[Tensor]] = {form: [] for form in FORMS}  # newest first
        for i, step in enumerate(self.steps):
            data = net.data(y, t[i])
            history["data"].insert(0, data)
            history["noise"].insert(0, (y - noise.alpha(t[i]) * data) / noise.sigma(t[i]))
            if i > 0 and (last := self.steps[i - 1]).corrects:
                nodes = lam[i - min(last.order, i) : i + 1].flip(0)
                state = _advance(noise, t[i - 1 : i + 1], state, history[last.form], taylor(nodes, lam[i], last, 1))
            else:
                state = y
            nodes = lam[i + 1 - min(step.order, i + 1) : i + 1].flip(0)
            y = _advance(noise, t[i : i + 2], state, history[step.form], taylor(nodes, lam[i + 1], step))
        return net.tableau(y, t, name, meta)

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready data; `from_dict` is the inverse."""
        return {"t": list(self.t), "steps": [asdict(step) for step in self.steps], "afs": self.afs}

    @classmethod
    def from_dict(cls, data: Any) -> "Genome":
        """Raises UserError for data that describe no genome."""
        check_plain("a genome", data)
        if not isinstance(data, dict) or set(data) != {"t", "steps", "afs"} or not isinstance(data["afs"], bool):
            raise UserError(f"a genome is a mapping of t, steps and afs (true or false), got {shown(data)}")
        if not isinstance(data["t"], list) or not all(map(is_number, data["t"])):
            raise UserError(f"a genome's t must be a list of times, got {shown(data['t'])}")
        if not isinstance(data["steps"], list):
            raise UserError(f"a genome's steps must be a list, got {shown(data['steps'])}")
        return cls(tuple(map(float, data["t"])), tuple(map(_step, data["steps"])), data["afs"])


def _step(data: Any) -> Step:
    names = [entry.name for entry in fields(Step)]
    if not isinstance(data, dict) or set(data) != set(names):
        raise UserError(f"a step of a genome is a mapping of {', '.join(names)}, got {shown(data)}")
    whole("order of a genome's step", data["order"], most=ORDERS[-1])
    for key, known in (("form", FORMS), ("scale", SCALES)):
        if data[key] not in known:
            raise unknown(f"{key} of a genome's step", data[key], known)
    if not is_number(data["rho"]) or not isinstance(data["corrects"], bool):
        raise UserError(f"a genome's step needs a number rho, and corrects true or false, got {shown(data)}")
    return Step(**data)


def _advance(noise: NoiseSchedule, ends: Tensor, x: Tensor, history: Sequence[Tensor], step: tuple) -> Tensor:
    form, weights = step
    keep, gain = step_weights(noise, ends[0], ends[1], form)
    return keep * x + gain * combine(weights, history)


def taylor(nodes: Tensor, end: Tensor, step: Step, origin: int = 0) -> tuple[Form, Tensor]:
    """The form of a step, and the weights [k] of its evaluations at the lambdas `nodes` [k], newest first, in units of
    the weight of a constant. The step goes from the node `origin` to `end`; 1 is a corrector, whose newest evaluation
    is at `end`."""
    h = end - nodes[origin]
    z = -h if step.form == "data" else h
    wanted = torch.stack([phi(n + 1, z) / phi(1, z) for n in range(len(nodes))])  # of h^n f^(n)
    if len(nodes) == 2 and step.scale != "exact":
        wanted[1] = 0.5 if step.scale == "bh2" else 0.5 / phi(1, z)
    if len(nodes) > 1 and origin == 0:
        wanted[1] *= 1 + step.rho * h
    r = (nodes - nodes[origin]) / h
    moments = torch.stack([r**n / factorial(n) for n in range(len(nodes))])
    return step.form, torch.linalg.solve(moments, wanted)


# The step of full order of the classical solvers that are genomes, and whether their last steps have lower orders.
CLASSICAL = {
    "ddim": (Step(), False),
    "dpmpp_2m": (Step(scale="bh2"), True),
    "dpm_2m": (Step(form="noise", scale="bh2"), True),
    "adams_bashforth": (Step(), False),
    "deis_log": (Step(form="noise"), False),
    "unipc_bh1": (Step(scale="bh1", corrects=True), True),
    "unipc_bh2": (Step(scale="bh2", corrects=True), True),
    "unipc_bh1_eps": (Step(form="noise", scale="bh1", corrects=True), True),
    "unipc_bh2_eps": (Step(form="noise", scale="bh2", corrects=True), True),
    "unip_bh1": (Step(scale="bh1"), True),
    "unip_bh2": (Step(scale="bh2"), True),
}


def of_classical(name: str, t: Sequence[float]) -> Genome:
    """A classical solver on the times t [S+1] as a genome: its tableau is the same.

    Args:
        name: a solver of `CLASSICAL`, possibly with an order, possibly with `_afs`.
        t: times.

    Raises:
        UserError: for another solver.
    """
    solver, order, afs = registry.parse(name)
    base = next(known for known, entry in registry.CLASSICAL.items() if entry is solver)
    if base not in CLASSICAL or registry.needs_statistics(name):
        raise UserError(f"{name} is no genome: choose from {', '.join(CLASSICAL)}")
    step, lower_order_final = CLASSICAL[base]
    n = len(t) - 1
    orders = [min(order, n - i) if lower_order_final else order for i in range(n)]
    return Genome(tuple(map(float, t)), tuple(replace(step, order=p) for p in orders), afs)
