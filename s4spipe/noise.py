"""Noise schedules: alpha_t, sigma_t and lambda_t = log(alpha_t / sigma_t) of x_t = alpha_t x_0 + sigma_t eps.

All methods map float64 tensors elementwise and are differentiable, so that times can be learned through them.
"""

import base64
import math
import struct
from dataclasses import dataclass, fields

import torch
from torch import Tensor

from s4spipe.errors import UserError, unknown


class NoiseSchedule:
    """What every schedule has: `T` and `t_min` (where sampling starts and ends), alpha, sigma, lambda_ and its inverse.

    A subclass gives `lambda_(t)`, `inverse(lam)` and `alpha(t)`; lambda_ falls strictly as t rises.
    """

    T: float
    t_min: float

    def alpha(self, t: Tensor) -> Tensor:
        """Variance preserving unless overridden: alpha^2 = sigmoid(2 lambda)."""
        return torch.sigmoid(2 * self.lambda_(t)).sqrt()

    def sigma(self, t: Tensor) -> Tensor:
        return self.alpha(t) * torch.exp(-self.lambda_(t))

    def lambda_(self, t: Tensor) -> Tensor:
        raise NotImplementedError

    def inverse(self, lam: Tensor) -> Tensor:
        """The time t at which lambda_(t) = lam."""
        raise NotImplementedError

    @property
    def sigma_T(self) -> float:
        """Standard deviation of x_T, the noise that sampling starts from."""
        return float(self.sigma(torch.tensor(self.T, dtype=torch.float64)))


@dataclass(frozen=True)
class VE(NoiseSchedule):
    """Variance exploding, as in EDM (Karras et al. 2022): alpha = 1, t = sigma."""

    sigma_min: float = 0.002
    sigma_max: float = 80.0

    def __post_init__(self):
        if not 0 < self.sigma_min < self.sigma_max < math.inf:
            raise UserError(f"VE noise needs 0 < sigma_min < sigma_max, got {self.sigma_min} and {self.sigma_max}")

    @property
    def T(self):
        return self.sigma_max

    @property
    def t_min(self):
        return self.sigma_min

    def alpha(self, t):
        return torch.ones_like(t)

    def sigma(self, t):
        return t

    def lambda_(self, t):
        return -t.log()

    def inverse(self, lam):
        return torch.exp(-lam)


@dataclass(frozen=True)
class VPLinear(NoiseSchedule):
    """Variance preserving with beta(t) linear on [0, 1] (Song et al. 2021, arXiv 2011.13456, eq. 32)."""

    beta_min: float = 0.1
    beta_max: float = 20.0
    t_min: float = 1e-3
    T: float = 1.0

    def __post_init__(self):
        _check_times(self)
        if not 0 < self.beta_min <= self.beta_max:
            raise UserError(f"VP noise needs 0 < beta_min <= beta_max, got {self.beta_min} and {self.beta_max}")

    def log_alpha(self, t):
        return -0.25 * (self.beta_max - self.beta_min) * t**2 - 0.5 * self.beta_min * t

    def alpha(self, t):
        return self.log_alpha(t).exp()

    def sigma(self, t):
        return (-torch.expm1(2 * self.log_alpha(t))).sqrt()

    def lambda_(self, t):
        return self.log_alpha(t) - 0.5 * torch.log(-torch.expm1(2 * self.log_alpha(t)))

    def inverse(self, lam):
        # log alpha = -softplus(-2 lambda) / 2 is a quadratic in t; its root in the form without cancellation.
        log_alpha = -0.5 * torch.nn.functional.softplus(-2 * lam)
        slope = self.beta_max - self.beta_min
        return -4 * log_alpha / (self.beta_min + (self.beta_min**2 - 4 * slope * log_alpha).sqrt())


@dataclass(frozen=True)
class VPCosine(NoiseSchedule):
    """Variance preserving with alpha(t) = cos(pi/2 (t+s)/(1+s)) / cos(pi/2 s/(1+s)) (Nichol and Dhariwal 2021)."""

    s: float = 0.008
    t_min: float = 1e-3
    T: float = 0.9946  # where DPM-Solver (Lu et al. 2022, App. D) stops, just short of the singular end

    def __post_init__(self):
        _check_times(self)

    def _angle(self, t):
        return math.pi / 2 * (t + self.s) / (1 + self.s)

    def alpha(self, t):
        return self._angle(t).cos() / math.cos(self._angle(0.0))

    def sigma(self, t):
        return (1 - self.alpha(t) ** 2).sqrt()

    def lambda_(self, t):
        return self.alpha(t).log() - self.sigma(t).log()

    def inverse(self, lam):
        alpha = torch.sigmoid(2 * lam).sqrt()
        return torch.acos(alpha * math.cos(self._angle(0.0))) * 2 * (1 + self.s) / math.pi - self.s


@dataclass(frozen=True)
class VPDiscrete(NoiseSchedule):
    """A table of alphas_cumprod as discrete-time models have; t is its (fractional) index, as the network sees it.

    Between two entries log(alpha) is linear in t (DPM-Solver, Lu et al. 2022, App. D).
    """

    alphas_cumprod: tuple[float, ...]
    t_min: float = 0.0

    def __post_init__(self):
        table = torch.tensor(self.alphas_cumprod, dtype=torch.float64)
        if table.ndim != 1 or len(table) < 2 or not ((table > 0) & (table < 1)).all() or not (table.diff() < 0).all():
            raise UserError("alphas_cumprod must be at least two numbers in (0, 1), strictly falling")
        object.__setattr__(self, "_log_alpha", 0.5 * table.log())
        _check_times(self, first=0.0)

    @property
    def T(self):
        return float(len(self.alphas_cumprod) - 1)

    def log_alpha(self, t):
        left = t.detach().floor().clamp(0, self.T - 1).long()
        low, high = (self._log_alpha.to(t.device)[i] for i in (left, left + 1))
        return low + (t - left) * (high - low)

    def alpha(self, t):
        return self.log_alpha(t).exp()

    def sigma(self, t):
        return (-torch.expm1(2 * self.log_alpha(t))).sqrt()

    def lambda_(self, t):
        return self.log_alpha(t) - 0.5 * torch.log(-torch.expm1(2 * self.log_alpha(t)))

    def inverse(self, lam):
        log_alpha = -0.5 * torch.nn.functional.softplus(-2 * lam)
        table = self._log_alpha.to(lam.device)
        right = torch.searchsorted(-table, -log_alpha.detach().contiguous()).clamp(1, len(table) - 1)
        low, high = table[right - 1], table[right]
        return (right - 1) + (log_alpha - low) / (high - low)


@dataclass(frozen=True)
class Flow(NoiseSchedule):
    """Flow matching on straight lines (Lipman et al. 2023, arXiv 2210.02747): alpha = 1 - t, sigma = t."""

    t_min: float = 1e-3
    T: float = 0.999  # at 1 there is no signal left, and lambda is infinite

    def __post_init__(self):
        _check_times(self)
        if self.T >= 1:
            raise UserError(f"flow noise needs T below 1, where lambda is infinite, got {self.T}")

    def alpha(self, t):
        return 1 - t

    def sigma(self, t):
        return t

    def lambda_(self, t):
        return torch.log1p(-t) - t.log()

    def inverse(self, lam):
        return torch.sigmoid(-lam)


def _check_times(noise: NoiseSchedule, first: float = 1e-12) -> None:
    if not first <= noise.t_min < noise.T < math.inf:
        raise UserError(f"{type(noise).__name__} noise needs 0 < t_min < T, got t_min={noise.t_min} and T={noise.T}")


NOISE = {"ve": VE, "vp_linear": VPLinear, "vp_cosine": VPCosine, "vp_discrete": VPDiscrete, "flow": Flow}


def describe(noise: NoiseSchedule) -> dict:
    """A noise schedule as short JSON-ready data; `from_description` is its inverse, to the last bit."""
    name = next(name for name, cls in NOISE.items() if type(noise) is cls)
    description = {"name": name} | {f.name: getattr(noise, f.name) for f in fields(noise)}
    if name == "vp_discrete":
        description["alphas_cumprod"] = _describe_table(noise.alphas_cumprod)
    return description


def from_description(description: dict) -> NoiseSchedule:
    """Raises UserError for an unknown name or parameter."""
    parameters = dict(description)
    name = parameters.pop("name", None)
    if name not in NOISE:
        raise unknown("noise schedule", name, NOISE)
    known = {f.name for f in fields(NOISE[name])}
    if name == "vp_discrete":
        parameters["alphas_cumprod"] = _table(parameters.get("alphas_cumprod", ()))
    for key, value in parameters.items():
        if key not in known:
            raise unknown(f"parameter of the {name} noise schedule", key, known)
        numbers = value if key == "alphas_cumprod" else [value]
        if not all(isinstance(number, int | float) and not isinstance(number, bool) for number in numbers):
            raise UserError(f"the {name} noise schedule needs a number for {key!r}, got {value!r}")
    return NOISE[name](**parameters)


# How the betas of published models run from their first to their last; alphas_cumprod is the product of 1 - beta.
BETAS = {
    "linear": lambda first, last, count: torch.linspace(first, last, count, dtype=torch.float64),
    "scaled_linear": lambda first, last, count: torch.linspace(first**0.5, last**0.5, count, dtype=torch.float64) ** 2,
}


def alphas_cumprod(betas: str, first: float, last: float, count: int) -> tuple[float, ...]:
    """The table of a model whose betas run by one of the rules of `BETAS`."""
    return tuple((1 - BETAS[betas](first, last, count)).cumprod(0).tolist())


def _describe_table(table: tuple[float, ...]) -> dict | list | str:
    """A rule that gives this very table, or it itself: in base64 if it is long, as a solver's file should be small."""
    first, last = round(1 - table[0], 12), round(1 - table[-1] / table[-2], 12)
    for name in BETAS:
        rule = {"betas": name, "first": first, "last": last, "count": len(table)}
        if first > 0 and last > 0 and alphas_cumprod(**rule) == table:
            return rule
    return list(table) if len(table) <= 100 else base64.b64encode(struct.pack(f"<{len(table)}d", *table)).decode()


def _table(description: object) -> tuple[float, ...]:
    try:
        if isinstance(description, dict):
            return alphas_cumprod(**description)
        if isinstance(description, str):
            packed = base64.b64decode(description, validate=True)
            return struct.unpack(f"<{len(packed) // 8}d", packed)
        return tuple(description)
    except (TypeError, ValueError, KeyError, RuntimeError, struct.error):
        raise UserError(
            "the vp_discrete noise schedule needs alphas_cumprod as a list of numbers, as float64 in base64, or as "
            f"betas ({' or '.join(BETAS)}), first, last and count, got {str(description)[:80]!r}"
        ) from None
