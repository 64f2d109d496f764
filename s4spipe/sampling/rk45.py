"""The adaptive Runge-Kutta solver of Dormand and Prince, with an error control and steps of each sample's own."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from s4spipe.models.base.denoiser import Denoiser
from s4spipe.models.noise import NoiseSchedule, precision
from s4spipe.runtime.checks import check_like
from s4spipe.runtime.errors import UserError
from s4spipe.sampling.loop import check_batch, check_noises, not_finite
from s4spipe.sampling.tableau.adaptive import Adaptive

# Dormand and Prince 1980 (RK5(4)7M), as in Hairer, Norsett and Wanner, Solving ODEs I, table II.5.2: nodes, weights of
# the stages, and the difference between the weights of order 5 (the last stage's) and those of order 4.
NODES = (0, 1 / 5, 3 / 10, 4 / 5, 8 / 9, 1, 1)
STAGES = (
    (),
    (1 / 5,),
    (3 / 40, 9 / 40),
    (44 / 45, -56 / 15, 32 / 9),
    (19372 / 6561, -25360 / 2187, 64448 / 6561, -212 / 729),
    (9017 / 3168, -355 / 33, 46732 / 5247, 49 / 176, -5103 / 18656),
    (35 / 384, 0, 500 / 1113, 125 / 192, -2187 / 6784, 11 / 84),
)
ERROR = (71 / 57600, 0, -71 / 16695, 71 / 1920, -17253 / 339200, 22 / 525, -1 / 40)
SAFETY, LEAST, MOST = 0.9, 0.2, 10.0  # of the factor from a step to the next
FIRST = 0.03  # the first step, as a fraction of the whole

# (clock [b], states [b, M], their places in the batch [b]) -> derivatives [b, M]
Derivative = Callable[[Tensor, Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class Solution:
    """A batch of samples.

    Attributes:
        x_0: the samples [B, ...], in the dtype of x_T.
        evaluations: how many each took [B].
        path: with `record`, the states [B, R, ...] after each round of steps, divided by sqrt(alpha^2 + sigma^2). A
            sample that was finished earlier, or whose step was rejected, stays where it was.
    """

    x_0: Tensor
    evaluations: Tensor
    path: Tensor | None = None


@torch.no_grad()
def solve(
    denoiser: Callable[[Tensor, Tensor, Any], Tensor],
    solver: Adaptive,
    x_T: Tensor,
    condition: Any = None,
    record: bool = False,
) -> Solution:
    """Solve the probability-flow ODE from T to t_min, to a tolerance. No sample depends on its batch.

    Each sample has its own time and step, and every call of the denoiser gets those that are not finished. States are
    float64, as in `s4spipe.sample`; there are no gradients.

    Args:
        denoiser: (x [b, ...], t [b], condition) -> x0 prediction [b, ...], for any b.
        solver: the tolerance, and the most evaluations of a sample.
        x_T: the noises [B, ...], of standard deviation sigma_T (not 1).
        condition: passed to the denoiser; a tensor has one row per sample.
        record: also return the path.

    Raises:
        UserError: for what `s4spipe.sample` refuses, and for samples that need more evaluations than `solver.nfe`.
    """
    check_batch(denoiser, x_T)
    check_noises(x_T)
    flow = Flow(denoiser, solver.noise, x_T, condition)
    path = [flow.first]
    visit = path.append if record else lambda y: None
    limits = flow.angle(solver.noise.T), flow.angle(solver.noise.t_min)
    z, evaluations = integrate(flow.derivative, flow.first, limits, solver.tolerance, solver.nfe, visit=visit)
    x_0 = (z * flow.scale(solver.noise.t_min)).view(x_T.shape).to(x_T.dtype)
    return Solution(x_0, evaluations, torch.stack(path, 1).view(len(x_T), -1, *x_T.shape[1:]) if record else None)


class Flow:
    """The probability-flow ODE of a batch, in coordinates in which it is smooth at every noise level.

    The state is z = x / s, with s = sqrt(alpha^2 + sigma^2), and the clock is the angle theta = atan(sigma / alpha), so
    that z = cos(theta) x_0 + sin(theta) eps, whatever the noise schedule (Lu and Song 2024, arXiv 2410.11081, sec. 3).
    With eps = (z - cos(theta) D) / sin(theta), the derivative of z is cos(theta) eps - sin(theta) D, which is
    (cos(theta) z - D) / sin(theta). For data of standard deviation 1, z stands still, so that steps are long.

    Args:
        denoiser, condition: as for `solve`.
        noise: the noise schedule.
        x: the first states [B, ...], at T.
    """

    def __init__(self, denoiser: Callable, noise: NoiseSchedule, x: Tensor, condition: Any, start: float | None = None):
        self.denoiser, self.noise, self.shape = denoiser, noise, x.shape[1:]
        self.dtype = precision(x.device)
        self.condition = denoiser.checked(x, condition) if isinstance(denoiser, Denoiser) else condition
        self.first = x.detach().to(self.dtype).flatten(1) / self.scale(noise.T if start is None else start)

    def angle(self, t: float) -> float:
        """theta at the time t."""
        return float(torch.exp(-self.noise.lambda_(_double(t))).atan())

    def scale(self, t: float) -> float:
        """s at the time t."""
        return float((self.noise.alpha(_double(t)) ** 2 + self.noise.sigma(_double(t)) ** 2).sqrt())

    def prediction(self, theta: Tensor, z: Tensor, rows: Tensor) -> Tensor:
        """D [b, M] at states z [b, M] and angles theta [b] of the samples `rows` of the batch.

        Raises UserError for what is no prediction, or not finite.
        """
        t = self.noise.inverse(-theta.tan().log()).clamp(self.noise.t_min, self.noise.T)
        x = (z * (self.noise.alpha(t) / theta.cos())[:, None]).view(-1, *self.shape)
        own = self.condition
        if torch.is_tensor(own) and own.ndim and len(own) == len(self.first):
            own = own[rows]
        D = self.denoiser(x, t, own)
        check_like("the denoiser", D, x)
        if count := not_finite(D):
            raise UserError(f"the network's output is not finite (NaN or infinite) for {count}, at times from "
                            f"{float(t.min()):.6g} to {float(t.max()):.6g} (rk45); try model.precision bfloat16 or "
                            "float32, and check the weights")  # fmt: skip
        return D.to(z).flatten(1)

    def derivative(self, theta: Tensor, z: Tensor, rows: Tensor) -> Tensor:
        return (theta.cos()[:, None] * z - self.prediction(theta, z, rows)) / theta.sin()[:, None]


def root_mean_square(ratio: Tensor) -> Tensor:
    """The size [b] of errors [b, M], each divided by what is allowed."""
    return ratio.square().mean(1).sqrt()


def integrate(
    derivative: Derivative,
    y: Tensor,
    limits: tuple[float, float],
    tolerance: float,
    most: int,
    *,
    size: Callable[[Tensor], Tensor] = root_mean_square,
    visit: Callable[[Tensor], None] = lambda y: None,
) -> tuple[Tensor, Tensor]:
    """Integrate y' = f(clock, y) for each row of a batch, with steps of its own.

    A step is accepted if its estimated error, divided by tolerance (1 + |y|) and put together by `size`, is at most 1.
    An accepted step goes on with the solution of order 5, and its last evaluation is the next one's first.

    Args:
        derivative: f.
        y: the first states [B, M].
        limits: the clock at the start and at the end.
        tolerance: relative and absolute.
        most: evaluations of a row.
        size: errors relative to what is allowed [b, M] -> their size [b].
        visit: gets the states [B, M] after every round of steps.

    Returns:
        The last states [B, M], and the evaluations of each row [B].

    Raises:
        UserError: if rows need more than `most` evaluations.
    """
    start, end = limits
    y, sign = y.clone(), 1.0 if end > start else -1.0
    clock = torch.full_like(y[:, 0], start)
    step = torch.full_like(clock, FIRST * abs(end - start))
    evaluations = torch.ones(len(y), dtype=torch.long, device=y.device)
    going = torch.arange(len(y), device=y.device)
    first = derivative(clock, y, going) if len(y) else y  # f at the current states
    while len(going):
        if count := int((evaluations[going] + 6 > most).sum()):
            raise UserError(f"rk45 needs more than {most} evaluations for {count} of {len(y)} samples at tolerance "
                            f"{tolerance:g}: allow more (nfe of the teacher or the reference in params.yaml) or raise "
                            "the tolerance")  # fmt: skip
        left = (end - clock[going]).abs()
        last = step[going] >= left
        h = torch.where(last, left, step[going])
        slopes, there = [first[going]], clock[going]
        for node, weights in zip(NODES[1:], STAGES[1:], strict=True):
            moved = sum(w * k for w, k in zip(weights, slopes, strict=True) if w)
            new, at = y[going] + (sign * h)[:, None] * moved, there + sign * node * h
            if node == 1:
                at = torch.where(last, end, at)
            slopes.append(derivative(at, new, going))
        evaluations[going] += 6
        error = h[:, None] * sum(w * k for w, k in zip(ERROR, slopes, strict=True) if w)
        ratio = size(error / (tolerance * (1 + torch.maximum(y[going].abs(), new.abs()))))
        ratio = ratio.nan_to_num(torch.inf)
        factor = (SAFETY * ratio.clamp(min=1e-10) ** -0.2).clamp(LEAST, MOST)
        good = ratio <= 1
        step[going] = h * torch.where(good, factor, factor.clamp(max=1))
        done = going[good]
        clock[done], y[done], first[done] = at[good], new[good], slopes[-1][good]
        going = torch.cat([going[~good], going[good & ~last]]).sort().values
        visit(y.clone())
    return y, evaluations


def _double(t: float) -> Tensor:
    return torch.tensor(t, dtype=torch.float64, device="cpu")
