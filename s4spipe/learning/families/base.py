"""The base class of learned families, learned times, and the registry of families."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from s4spipe.models.noise import NoiseSchedule
from s4spipe.runtime.errors import UserError, unknown
from s4spipe.sampling.tableau import Tableau
from s4spipe.solvers import registry


class Times(nn.Module):
    """Learned steps and network times (S4S-Alt, Frankel et al. 2025, Sec. 3.2 and App. F).

    tau(i) = sum_{n>=i} softmax(xi)_n falls from 1. Rescaled affinely onto [lambda(T), lambda(t_min)], it gives the
    steps; both ends are fixed. The network sees a time t_c[i] of its own: lambda(t_c[i]) = lambda(t_i) +
    clip(xi_c[i], -delta, delta) with delta = a min_i (lambda_{i+1} - lambda_i), except at i = 0. Shifts are in lambda,
    as the steps are. In t, the last steps of a VE schedule are almost equal and would leave the first ones no room.
    xi_c is in units of delta, so that one learning rate suits all shifts.

    Args:
        noise: the noise schedule.
        t: [N+1] steps to start from; they are reproduced exactly.
        decoupling: a; 0 ties the network times to the steps.
    """

    ends: Tensor
    lam: Tensor
    rounding: Tensor

    def __init__(self, noise: NoiseSchedule, t: Tensor, decoupling: float = 0.5):
        super().__init__()
        self.noise, self.decoupling = noise, decoupling
        self.register_buffer("ends", t[[0, -1]])
        self.register_buffer("lam", noise.lambda_(self.ends))
        gaps = noise.lambda_(t).diff()
        # softmax(xi)_i is proportional to step i's share of lambda; the rescaling removes the last entry.
        self.xi = nn.Parameter(torch.cat([gaps, gaps.mean()[None]]).log())
        self.xi_c = nn.Parameter(torch.zeros(len(t) - 1, dtype=t.dtype))
        with torch.no_grad():  # the rounding error at the start, so that the start is matched to the last digit
            self.register_buffer("rounding", torch.zeros(len(t) - 2, dtype=t.dtype))
            self.rounding = t[1:-1] - self()[0][1:-1]

    def forward(self) -> tuple[Tensor, Tensor]:
        """The current steps t [N+1] and network times t_c [N]."""
        tau = torch.softmax(self.xi, 0).flip(0).cumsum(0).flip(0)
        share = (tau[0] - tau) / (tau[0] - tau[-1])  # 0 at T, 1 at t_min
        lam = self.lam[0] + share * (self.lam[1] - self.lam[0])
        inner = self.noise.inverse(lam[1:-1]) + self.rounding
        t = torch.cat([self.ends[:1], inner, self.ends[1:]])
        delta = self.decoupling * lam.diff().min()
        shifted = lam[1:-1] + delta * self.xi_c[1:].clamp(-1, 1)
        return t, torch.cat([t[:1], self.noise.inverse(shifted) + self.rounding])


class Family(nn.Module):
    """A differentiable map from parameters to a tableau, which starts exactly at a classical solver.

    A subclass sets `times` last, so that the coefficients come first among its parameters.

    Args:
        init: the classical solver that the initial parameters give. With `_afs` at its end, the first evaluation is
            made without the network and does not count.
        noise: the noise schedule.
        t: [S+1] steps.
        nfe: evaluations; equal to S unless the solver's steps take several.
    """

    t: Tensor
    times: Times | None
    common: ClassVar[tuple[str, ...]] = ()  # parameters besides `times` that are the same for all bands of frequencies
    by_band: ClassVar[bool] = False  # whether `from_start` takes a tableau with weights in a basis
    constant: ClassVar[bool] = False  # whether it learns the weights of a constant that its start adds to the states
    noisy: ClassVar[bool] = False  # whether its tableaux add fresh noise: then only an evolution can learn it
    late: bool = True  # of one that learns c_0 too: whether it does

    def __init__(self, init: str, noise: NoiseSchedule, t: Tensor, nfe: int):
        super().__init__()
        self.init, self.noise, self.nfe = init, noise, nfe
        if registry.needs_statistics(init):
            raise UserError(f"init {init!r} adds a constant to its states, which no family learns: start from another")
        self.afs = registry.parse(init)[2]
        self.register_buffer("t", t)

    @classmethod
    def from_start(cls, start: Tableau, times: Times | None, **options: Any) -> "Family":
        """The family that starts at a classical solver's tableau `start`, whose name is that of the solver."""
        raise NotImplementedError

    def forward(self, name: str = "", meta: dict | None = None) -> Tableau:
        """The tableau of the current parameters.

        Args:
            name: the tableau's name.
            meta: its provenance.

        Raises:
            UserError: if the parameters define no valid solver.
        """
        raise NotImplementedError

    def steps(self) -> tuple[Tensor, Tensor]:
        """The current steps t [S+1], and the network times t_c [S] at their starts."""
        return (self.t, self.t[:-1]) if self.times is None else self.times()

    @property
    def parameter_count(self) -> int:
        """m, the number of free coefficients."""
        raise NotImplementedError

    def metadata(self) -> dict[str, Any]:
        """The coefficients and their initial values, as JSON-ready data for the solver's file."""
        return {}

    @torch.no_grad()
    def clip(self) -> None:
        """Clip the parameters to their ranges."""
        if self.times is not None:
            self.times.xi_c.clamp_(-1, 1)

    def size(self, t: Tensor) -> Tensor:
        """sqrt(alpha^2 + sigma^2) at times t: the expected size of a state."""
        return (self.noise.alpha(t) ** 2 + self.noise.sigma(t) ** 2).sqrt()


@dataclass(frozen=True)
class Entry:
    """A family's class, the options that a learner's block may set, and the options that the family's name fixes."""

    cls: type[Family]
    options: tuple[str, ...]
    fixed: dict[str, Any] = field(default_factory=dict)


FAMILIES: dict[str, Entry] = {}


def register(name: str, *options: str, **fixed: Any) -> Callable[[type[Family]], type[Family]]:
    """A class decorator that registers the class as `name` in params.yaml."""

    def add(cls: type[Family]) -> type[Family]:
        FAMILIES[name] = Entry(cls, options, fixed)
        return cls

    return add


def noisy(name: str) -> bool:
    """Whether a family's tableaux add fresh noise; a name that is none has none."""
    return name in FAMILIES and FAMILIES[name].cls.noisy


def check_options(name: str, options: dict[str, Any]) -> None:
    """Raises UserError for an unknown family, and for an option that is set and that the family does not have."""
    if name not in FAMILIES:
        raise unknown("family", name, FAMILIES)
    for key, value in options.items():
        if key not in ("order", "late") and value and key not in FAMILIES[name].options:
            able = [other for other, entry in FAMILIES.items() if key in entry.options]
            raise UserError(f"{key}: not for the family {name}, only for {', '.join(sorted(able))}")


def check_start(start: Tableau, constant: bool = False) -> None:
    """Raises UserError for a solver that adds something to its states which a family does not learn: fresh noise, and
    a constant unless it is said to be learned."""
    if start.V is not None:
        raise UserError(
            f"solver {start.name} adds fresh noise to its states, which no family learns: start from another"
        )
    if start.m is not None and not constant:
        raise UserError(f"solver {start.name} adds a constant to its states, which only the family free learns: start "
                        "from another")  # fmt: skip


def make(name: str, start: Tableau, times: Times | None = None, **options: Any) -> Family:
    """A family by its name, starting at a classical solver's tableau; with weights by frequency, see `banded`.

    Args:
        name: the family's name.
        start: a tableau whose `name` is that of the classical solver.
        times: learned times; None for fixed times.
        options: order and late (ignored by families without them), consistent, shared.

    Raises:
        UserError: for an unknown family, an option that it does not have, or a start that it cannot have.
    """
    check_options(name, options)
    entry = FAMILIES[name]
    check_start(start, entry.cls.constant)
    chosen = {key: value for key, value in options.items() if key in entry.options}
    return entry.cls.from_start(start, times, **chosen, **entry.fixed)
