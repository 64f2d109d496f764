"""Learned families: differentiable maps from parameters to a tableau, starting exactly at a classical solver.

In all of them the parameters called u are corrections to a classical solver's coefficients, 0 at the start, in units
that move a state by its own size sqrt(alpha^2 + sigma^2) for an evaluation (or past state) of unit size: without these
units no learning rate would fit the first and the last steps, whose weights differ by orders of magnitude.
"""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from s4spipe import classical
from s4spipe.errors import UserError
from s4spipe.multistep import Multistep
from s4spipe.noise import NoiseSchedule
from s4spipe.singlestep import SingleStep
from s4spipe.tableau import Tableau
from s4spipe.trace import Trace


class Times(nn.Module):
    """Learned steps and network times (S4S-Alt, Frankel et al. 2025, Sec. 3.2 and App. F).

    tau(i) = sum_{n>=i} softmax(xi)_n falls from 1; rescaled affinely onto [lambda(T), lambda(t_min)] it gives the
    steps, both ends fixed. The network sees a time t_c[i] of its own, with lambda(t_c[i]) = lambda(t_i) +
    clip(xi_c[i], -delta, delta), delta = a min_i (lambda_{i+1} - lambda_i), except at i = 0. Shifts are in lambda like
    the steps themselves: in t, the last steps of a VE schedule, all but equal in t, would leave no room for the first.
    xi_c is kept in units of delta, so that one learning rate fits all.

    Args:
        t: [N+1] steps to start from; they are matched exactly.
        decoupling: a; 0 keeps the network times equal to the steps.
    """

    def __init__(self, noise: NoiseSchedule, t: Tensor, decoupling: float = 0.5):
        super().__init__()
        self.noise, self.decoupling = noise, decoupling
        self.register_buffer("ends", t[[0, -1]])
        self.register_buffer("lam", noise.lambda_(self.ends))
        gaps = noise.lambda_(t).diff()
        # softmax(xi)_i is proportional to step i's share of lambda; the last entry is removed by the rescaling.
        self.xi = nn.Parameter(torch.cat([gaps, gaps.mean()[None]]).log())
        self.xi_c = nn.Parameter(torch.zeros(len(t) - 1, dtype=t.dtype))
        with torch.no_grad():  # what rounding makes of the start, so that it is matched to the last digit
            self.register_buffer("rounding", torch.zeros(len(t) - 2, dtype=t.dtype))
            self.rounding = t[1:-1] - self()[0][1:-1]

    def forward(self) -> tuple[Tensor, Tensor]:
        """The steps t [N+1] and the network times t_c [N]."""
        tau = torch.softmax(self.xi, 0).flip(0).cumsum(0).flip(0)
        share = (tau[0] - tau) / (tau[0] - tau[-1])  # 0 at T, 1 at t_min
        lam = self.lam[0] + share * (self.lam[1] - self.lam[0])
        inner = self.noise.inverse(lam[1:-1]) + self.rounding
        t = torch.cat([self.ends[:1], inner, self.ends[1:]])
        delta = self.decoupling * lam.diff().min()
        shifted = lam[1:-1] + delta * self.xi_c[1:].clamp(-1, 1)
        return t, torch.cat([t[:1], self.noise.inverse(shifted) + self.rounding])


class Family(nn.Module):
    """What the families share: the classical solver they start from, and learned times if there are any.

    Args:
        init: the classical solver that the untouched parameters give; with `_afs` at its end, the first evaluation is
            made without the network and does not count.
        t: [S+1] steps.
        nfe: evaluations; S unless the solver's steps take several.
        times: learned times, which start at `t`; None keeps `t`.
    """

    def __init__(self, init: str | None, noise: NoiseSchedule, t: Tensor, nfe: int, times: Times | None):
        super().__init__()
        self.init, self.noise, self.nfe, self.times = init, noise, nfe, times
        self.afs = init is not None and classical.parse(init)[2]
        self.register_buffer("t", t)

    def steps(self) -> tuple[Tensor, Tensor]:
        """The steps t [S+1] and the network times t_c [S] at the starts of the steps."""
        return (self.t, self.t[:-1]) if self.times is None else self.times()

    @property
    def parameter_count(self) -> int:
        """m: the free numbers among the coefficients."""
        raise NotImplementedError

    def table(self) -> dict[str, list]:
        """The coefficients and where they started, as JSON-ready data for the solver file."""
        raise NotImplementedError

    @torch.no_grad()
    def clip(self) -> None:
        """Bring parameters that left their range back to its border."""
        if self.times is not None:
            self.times.xi_c.clamp_(-1, 1)

    def size(self) -> Tensor:
        """sqrt(alpha^2 + sigma^2) at the starting steps, [S+1]."""
        return (self.noise.alpha(self.t) ** 2 + self.noise.sigma(self.t) ** 2).sqrt()


class LMS(Family):
    """A linear multistep method with coefficients of its own for every step (S4S, Frankel et al. 2025, App. B).

    Learned: u [N, k], and with a corrector (see PC) v [N-1, k+1]. With `order` N, `consistent` and learned times,
    started from `euler`, it is DSS (arXiv 2505.21114).

    Args:
        order: history length k; None: the whole history.
        consistent: every row sums to one: corrections are taken relative to their row's mean.
        shared: one row of corrections for all steps, which are then added to b as they are: coefficients that do not
            depend on time, but for the first steps' shorter history.

    Raises UserError for an order below 1 or above N, and for an init that a multistep method of this order cannot be.
    """

    corrects = False

    def __init__(
        self,
        init: str,
        noise: NoiseSchedule,
        t: Tensor,
        order: int | None,
        times: Times | None = None,
        consistent: bool = False,
        shared: bool = False,
    ):
        rows = len(t) - 1
        super().__init__(init, noise, t, rows - classical.parse(init)[2], times)
        order = rows if order is None else order
        if not 1 <= order <= rows:
            raise UserError(f"order must be between 1 and the NFE ({rows}), got {order}")
        start = classical.coefficients(init, noise, t)
        if not isinstance(start, Multistep):
            raise UserError(f"init {init!r} is no multistep method: use another one, or the family ss")
        if self.corrects != (start.corrector is not None):
            raise UserError(self._says(init))
        if start.b[:, order:].any():
            raise UserError(f"init {init!r} looks back further than order {order}: raise the order or change init")
        self.order, self.form, self.consistent, self.shared = order, start.form, consistent, shared
        _, gain = start.step_weights(noise, t)
        scale = (self.size()[1:] / gain.abs())[:, None]
        # Row i of b has evaluations i, i-1, .. 0; of the corrector, made at the end of step i, one more.
        self._learn("b", "u", start.b, scale, order)
        if start.corrector is not None:
            self._learn("c", "v", start.corrector, scale[:-1], order + 1)

    def _learn(self, name: str, parameter: str, start: Tensor, scale: Tensor, width: int) -> None:
        padded = torch.zeros(len(start), width, dtype=torch.float64)
        kept = min(width, start.shape[1])
        padded[:, :kept] = start[:, :kept]
        ages = torch.arange(width)
        used = ages <= torch.arange(len(start))[:, None] + width - self.order
        self.register_buffer(f"{name}_start", padded)
        self.register_buffer(f"{name}_scale", scale)
        self.register_buffer(f"{name}_used", used.double())
        self.register_parameter(parameter, nn.Parameter(torch.zeros_like(padded[:1] if self.shared else padded)))

    @torch.no_grad()
    def randomise(self, seed: int) -> None:
        """Draw all coefficients anew, from N(0, 1), instead of a classical solver's."""
        generator = torch.Generator().manual_seed(seed)
        for name in ("b", "c")[: 1 + self.corrects]:
            start = getattr(self, f"{name}_start")
            start.copy_(
                getattr(self, f"{name}_used") * torch.randn(start.shape, generator=generator, dtype=start.dtype)
            )

    def _says(self, init: str) -> str:
        known = classical.CLASSICAL
        possible = [n for n, s in known.items() if s.kind == "multistep" and n.startswith("unipc") == self.corrects]
        return (
            f"init {init!r} has {'no' if self.corrects else 'a'} corrector, which a "
            f"{'predictor-corrector' if self.corrects else 'linear multistep'} method has"
            f"{'' if self.corrects else ' not'}: use one of {', '.join(sorted(possible))}"
        )

    def _learned(self, name: str, parameter: str) -> Tensor:
        u, used = getattr(self, parameter), getattr(self, f"{name}_used")
        if self.consistent:
            u = u - (u * used).sum(1, keepdim=True) / used.sum(1, keepdim=True)
        scale = 1 if self.shared else getattr(self, f"{name}_scale")
        return getattr(self, f"{name}_start") + scale * used * u

    @property
    def b(self) -> Tensor:
        """The coefficients [N, k], newest evaluation first."""
        return self._learned("b", "u")

    @property
    def corrector(self) -> Tensor | None:
        """Those of the corrector [N-1, k+1]."""
        return self._learned("c", "v") if self.corrects else None

    @property
    def parameter_count(self) -> int:
        """m = sum_i min(i, k) for LMS: the entries that reach an evaluation, less the rows' sums if they are fixed."""
        masks = [self.b_used, *([self.c_used] if self.corrects else [])]
        if self.shared:
            masks = [mask[-1:] for mask in masks]
        return int(sum(mask.sum() - self.consistent * len(mask) for mask in masks))

    def table(self) -> dict[str, list]:
        entries = {"b": self.b, "b_start": self.b_start}
        if self.corrects:
            entries |= {"corrector": self.corrector, "corrector_start": self.c_start}
        return {"form": self.form} | {name: value.tolist() for name, value in entries.items()}

    def forward(self, name: str = "lms", meta: dict | None = None) -> Tableau:
        t, t_c = self.steps()
        return Multistep(self.form, self.b, self.corrector).tableau(self.noise, t, name, meta, t_c, self.afs)


class PC(LMS):
    """A predictor-corrector that keeps NFE (S4S, Frankel et al. 2025, App. B): UniPC with learned weights.

    The corrector re-computes x_i from x_{i-1} over the past evaluations and the new one, which stays in the history;
    the last step has none.
    """

    corrects = True


class Fixed(Family):
    """A classical solver whose coefficients follow the steps: with learned times, LD3 (arXiv 2405.15506)."""

    def __init__(self, init: str, noise: NoiseSchedule, t: Tensor, nfe: int, times: Times | None = None):
        super().__init__(init, noise, t, nfe, times)
        self()  # raises for an NFE and an init that do not go together

    @property
    def parameter_count(self) -> int:
        """Of the times, which are all there is: N - 1 steps between the ends, and as many network times."""
        return max(1, 2 * (len(self.t) - 2))

    def table(self) -> dict[str, list]:
        return {}

    def forward(self, name: str = "fixed", meta: dict | None = None) -> Tableau:
        t, t_c = self.steps()
        coefficients = classical.coefficients(self.init, self.noise, t, classical.costs(self.init, self.nfe))
        if isinstance(coefficients, SingleStep):
            return coefficients.tableau(self.noise, t, name, meta, self.afs)
        return coefficients.tableau(self.noise, t, name, meta, t_c, self.afs)


class SS(Family):
    """Single steps with learned middle points and weights (S4S, Frankel et al. 2025, App. B): DPM-Solver-2S, -3S, or
    with `parallel` the EPD family (arXiv 2507.14797), whose middle points are reached from the step's start alone.

    Learned: u [entries], the lower triangles of every step's table, one after another, and `nodes` [middle points]:
    each point lies at the share sigmoid(logit(r) + node) of its step in lambda. EPD's paper also rescales directions
    and network times by up to 5 %; here the free weights and points do both.

    Raises UserError for an init that is not of this form, and for an NFE that it cannot spend.
    """

    def __init__(
        self,
        init: str,
        noise: NoiseSchedule,
        t: Tensor,
        nfe: int,
        times: Times | None = None,
        consistent: bool = False,
        parallel: bool = False,
    ):
        super().__init__(init, noise, t, nfe, times)
        costs = classical.costs(init, nfe)
        if len(costs) != len(t) - 1:
            raise UserError(f"{init} with {nfe} evaluations takes {len(costs)} steps, got {len(t) - 1}")
        start = classical.coefficients(init, noise, t, costs)
        if not isinstance(start, SingleStep):
            raise UserError(f"init {init!r} is no exponential single-step method: use dpm_2s, dpm_3s, dpmpp_2s or, for "
                            "the family epd, parallel_midpoints")  # fmt: skip
        self.form, self.consistent, self.costs = start.form, consistent, costs
        used, scales = [], []
        for i, (r, a) in enumerate(zip(start.r, start.a, strict=True)):
            mask = torch.ones_like(a).tril()
            if parallel:
                mask[:-1, 1:] = 0
            if ((1 - mask) * a).any():
                raise UserError(f"init {init!r} has middle points that need one another: use parallel_midpoints")
            lam = noise.lambda_(t[i : i + 2])
            ends = torch.cat([noise.inverse(lam[0] + r * (lam[1] - lam[0])), t[i + 1 : i + 2]])
            step = Multistep(self.form, a)
            gains = torch.stack([step.step_weights(noise, torch.stack([t[i], end]))[1][0] for end in ends])
            sizes = (noise.alpha(ends) ** 2 + noise.sigma(ends) ** 2).sqrt()
            used.append(mask)
            scales.append((sizes / gains.abs())[:, None] * mask)
        self.register_buffer("a_start", torch.cat([a.flatten() for a in start.a]))
        self.register_buffer("a_scale", torch.cat([s.flatten() for s in scales]))
        self.register_buffer("r_start", torch.cat(list(start.r)))
        self.used = used
        self.u = nn.Parameter(torch.zeros_like(self.a_start))
        self.nodes = nn.Parameter(torch.zeros_like(self.r_start))

    def learned(self) -> SingleStep:
        nodes = self.r_start + torch.sigmoid(self.r_start.logit() + self.nodes) - torch.sigmoid(self.r_start.logit())
        r = list(nodes.split([cost - 1 for cost in self.costs]))
        tables = []
        sizes = [cost**2 for cost in self.costs]
        for cost, mask, start, scale, u in zip(
            self.costs, self.used, *(v.split(sizes) for v in (self.a_start, self.a_scale, self.u)), strict=True
        ):
            u = u.view(cost, cost) * mask
            if self.consistent:
                u = mask * (u - u.sum(1, keepdim=True) / mask.sum(1, keepdim=True))
            tables.append(start.view(cost, cost) + scale.view(cost, cost) * u)
        return SingleStep(self.form, r, tables)

    @property
    def parameter_count(self) -> int:
        return int(sum(mask.sum() - self.consistent * len(mask) for mask in self.used) + len(self.nodes))

    def table(self) -> dict[str, list]:
        now = self.learned()
        return {"form": self.form, "r": [r.tolist() for r in now.r], "a": [a.tolist() for a in now.a]}

    def forward(self, name: str = "ss", meta: dict | None = None) -> Tableau:
        return self.learned().tableau(self.noise, self.steps()[0], name, meta, self.afs)


class GS(Family):
    """Weights on all past states and evaluations, as corrections to a classical solver's (arXiv 2510.17699, eq. 9).

        x_{i+1} = [the classical step] + sum_{j<=i} A[i, j] x_j + sum_{j<=i} C[i, j] d_j

    Learned: u_x [N, N] and u_d [N, N], both lower triangular, so m = N (N + 1). The paper starts from DPM-Solver++(3M).

    Raises UserError for an init that is no multistep method in the data form without corrector.
    """

    def __init__(self, init: str, noise: NoiseSchedule, t: Tensor, times: Times | None = None):
        rows = len(t) - 1
        super().__init__(init, noise, t, rows - classical.parse(init)[2], times)
        start = classical.coefficients(init, noise, t)
        if not isinstance(start, Multistep) or start.form != "data" or start.corrector is not None:
            raise UserError(f"init {init!r} is no multistep method in the data form without corrector: use dpmpp_3m")
        size = self.size()
        self.register_buffer("scale_x", (size[1:, None] / size[:-1]).tril())
        self.register_buffer("scale_d", size[1:, None].expand(-1, rows).tril())
        self.u_x = nn.Parameter(torch.zeros(rows, rows, dtype=torch.float64))
        self.u_d = nn.Parameter(torch.zeros_like(self.u_x))

    @property
    def parameter_count(self) -> int:
        return len(self.u_x) * (len(self.u_x) + 1)

    def table(self) -> dict[str, list]:
        return {"A": (self.scale_x * self.u_x).tolist(), "C": (self.scale_d * self.u_d).tolist()}

    def forward(self, name: str = "gs", meta: dict | None = None) -> Tableau:
        t, t_c = self.steps()
        base = classical.coefficients(self.init, self.noise, t)
        keep, gain = base.step_weights(self.noise, t)
        A, C = self.scale_x * self.u_x, self.scale_d * self.u_d
        net = Trace(self.noise, len(self.u_x), self.afs)
        x, d = [net.x_T], []
        for i in range(len(self.u_x)):
            d.append(net.data(x[i], t_c[i]))
            step = keep[i] * x[i] + gain[i] * sum(w * e for w, e in zip(base.b[i], reversed(d), strict=False))
            x.append(step + sum(A[i, j] * x[j] + C[i, j] * d[j] for j in range(i + 1)))
        return net.tableau(x[-1], t, name, meta)


class BNS(Family):
    """The unrestricted table (Bespoke non-stationary solvers, Shaul et al. 2024, arXiv 2403.01329): every c and W.

    Learned: u [N, N+1], corrections to (c, W). Starts from any classical solver; with learned times the network's times
    move, and the table, which knows of no schedule, stays.
    """

    def __init__(self, init: str, noise: NoiseSchedule, t: Tensor, nfe: int | None = None, times: Times | None = None):
        start = classical.build(init, noise, t, nfe=nfe)
        super().__init__(init, noise, t, start.nfe, times)
        if times is not None and start.nfe != len(t) - 1:
            raise UserError(f"init {init!r} has other network times than the steps', which learned times need")
        self.register_buffer("t_c", start.t_c)
        self.register_buffer("c_0", start.c_0)
        self.register_buffer("start", torch.cat([start.c[:, None], start.W], 1))
        # The states of a single-step solver lie between its steps: each row's size is that at its network time.
        ends = torch.cat([start.t_c[1:], t[-1:]])
        size = (noise.alpha(ends) ** 2 + noise.sigma(ends) ** 2).sqrt()[:, None]
        self.register_buffer("scale", torch.cat([size / noise.sigma_T, size.expand(-1, self.nfe).tril()], 1))
        self.u = nn.Parameter(torch.zeros_like(self.start))

    @property
    def parameter_count(self) -> int:
        return self.nfe * (self.nfe + 3) // 2

    def table(self) -> dict[str, list]:
        return {}

    def forward(self, name: str = "bns", meta: dict | None = None) -> Tableau:
        t, t_c = self.steps() if self.times is not None else (self.t, self.t_c)
        table = self.start + self.scale * self.u
        return Tableau(t, t_c, table[:, 0], table[:, 1:], self.noise, name, meta or {}, self.c_0)


class Free(Family):
    """Every number of the table: c_0, t_c, c and W, all at once.

    Learned: x [N], the network times' shifts in lambda; u [N, N+1], corrections to (c, W); u_0, to ln c_0. No time is
    bound to an end: c_0 and t_c[0] say from which noise level the first evaluation is made. At T, where all other
    solvers make it, the network can only answer with the data's mean. The steps t stay those of the start, and are
    only a record of it.

    Args:
        start: any tableau; the untouched parameters give it.
    """

    def __init__(self, start: Tableau):
        super().__init__(None, start.noise, start.t, start.nfe, None)
        noise, n = start.noise, start.nfe
        self.start = start
        lam = noise.lambda_(torch.stack([start.t_c, *[torch.full_like(start.t_c, t) for t in (noise.T, noise.t_min)]]))
        for name, value in zip(("lam", "low", "high"), lam, strict=True):
            self.register_buffer(name, value)
        ends = torch.cat([start.t_c[1:], start.t[-1:]])
        size = (noise.alpha(ends) ** 2 + noise.sigma(ends) ** 2).sqrt()[:, None]
        self.register_buffer("scale", torch.cat([size / noise.sigma_T, size.expand(-1, n).tril()], 1))
        self.x = nn.Parameter(torch.zeros(n, dtype=torch.float64))
        self.u = nn.Parameter(torch.zeros(n, n + 1, dtype=torch.float64))
        self.u_0 = nn.Parameter(torch.zeros((), dtype=torch.float64))

    @property
    def parameter_count(self) -> int:
        return self.nfe * (self.nfe + 5) // 2 + 1

    def table(self) -> dict[str, list]:
        return {}

    @torch.no_grad()
    def clip(self) -> None:
        """Network times stay within the schedule's."""
        self.x.clamp_(self.low - self.lam, self.high - self.lam)

    def forward(self, name: str = "free", meta: dict | None = None) -> Tableau:
        start, table = self.start, torch.cat([self.start.c[:, None], self.start.W], 1) + self.scale * self.u
        t_c = self.noise.inverse(self.lam + self.x).clamp(self.noise.t_min, self.noise.T)
        c_0 = start.c_0 * self.u_0.exp()
        return Tableau(start.t, t_c, table[:, 0], table[:, 1:], self.noise, name, meta or {}, c_0)


def late(
    solver: str, noise: NoiseSchedule, t: Tensor, share: float, nfe: int | None = None, meta: dict | None = None
) -> Tableau:
    """A classical solver on the later part of its way, as a start for `Free`: `share` of the range of lambda, its
    noisiest, is crossed without the network, which is a step of DDIM with an x0 prediction of 0.

    t [S+1] are squeezed into what remains, affinely in lambda.
    """
    lam = noise.lambda_(t)
    squeezed = noise.inverse(lam[-1] + (1 - share) * (lam - lam[-1]))
    t = torch.cat([squeezed[:-1], t[-1:]])
    table, kept = classical.build(solver, noise, t, nfe=nfe), float(noise.sigma(t[0])) / noise.sigma_T
    return Tableau(t, table.t_c, table.c * kept, table.W, noise, solver, meta or {}, table.c_0 * kept)


# name -> (init, noise, t, nfe, order, times, consistent, shared) -> family
FAMILIES: dict[str, Callable[..., Family]] = {
    "fixed": lambda init, noise, t, nfe, order, times, *_: Fixed(init, noise, t, nfe, times),
    "lms": lambda init, noise, t, nfe, order, times, *rows: LMS(init, noise, t, order, times, *rows),
    "pc": lambda init, noise, t, nfe, order, times, *rows: PC(init, noise, t, order, times, *rows),
    "dss": lambda init, noise, t, nfe, order, times, *_: LMS(init, noise, t, None, times, True),
    "ss": lambda init, noise, t, nfe, order, times, *rows: SS(init, noise, t, nfe, times, *rows[:1]),
    "epd": lambda init, noise, t, nfe, order, times, *rows: SS(init, noise, t, nfe, times, *rows[:1], parallel=True),
    "gs": lambda init, noise, t, nfe, order, times, *_: GS(init, noise, t, times),
    "bns": lambda init, noise, t, nfe, order, times, *_: BNS(init, noise, t, nfe, times),
    "free": lambda init, noise, t, nfe, order, times, *_: Free(classical.build(init, noise, t, nfe=nfe)),
}
