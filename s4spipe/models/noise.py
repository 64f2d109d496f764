"""Noise schedules: alpha_t, sigma_t and lambda_t = log(alpha_t / sigma_t) of x_t = alpha_t x_0 + sigma_t eps.

All methods act elementwise on float64 tensors and are differentiable, so that times can be learned.
"""

import base64
import math
import struct
from dataclasses import dataclass, field, fields
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from s4spipe.runtime.checks import is_number
from s4spipe.runtime.errors import UserError, shown, unknown


class NoiseSchedule:
    """The base class: alpha, sigma, lambda_ and its inverse, on times between `t_min` and `T`.

    Sampling starts at `T` and ends at `t_min`. lambda_ falls strictly as t rises. A subclass implements `lambda_`,
    `inverse` and, unless it is variance preserving, `alpha`.
    """

    if TYPE_CHECKING:  # an attribute in some, a property in others

        @property
        def T(self) -> float: ...

        @property
        def t_min(self) -> float: ...

    def alpha(self, t: Tensor) -> Tensor:
        """The weight of x_0 at times t; variance preserving unless overridden: alpha^2 = sigmoid(2 lambda)."""
        return torch.sigmoid(2 * self.lambda_(t)).sqrt()

    def sigma(self, t: Tensor) -> Tensor:
        """The standard deviation of the noise at times t."""
        return self.alpha(t) * torch.exp(-self.lambda_(t))

    def lambda_(self, t: Tensor) -> Tensor:
        """log(alpha / sigma) at times t: half the log of the signal-to-noise ratio."""
        raise NotImplementedError

    def inverse(self, lam: Tensor) -> Tensor:
        """The times t at which lambda_(t) = lam."""
        raise NotImplementedError

    @property
    def sigma_T(self) -> float:
        """The standard deviation of x_T, the noise that sampling starts from."""
        return float(self.sigma(torch.tensor(self.T, dtype=torch.float64, device="cpu")))


@dataclass(frozen=True)
class VE(NoiseSchedule):
    """Variance exploding, as in EDM (Karras et al. 2022): alpha = 1, t = sigma."""

    sigma_min: float = 0.002
    sigma_max: float = 80.0

    def __post_init__(self) -> None:
        _check_numbers(self)
        if not 0 < self.sigma_min < self.sigma_max < math.inf:
            raise UserError(f"VE noise needs 0 < sigma_min < sigma_max, got {self.sigma_min} and {self.sigma_max}")
        _check_levels(self)

    @property
    def T(self) -> float:
        return self.sigma_max

    @property
    def t_min(self) -> float:
        return self.sigma_min

    def alpha(self, t: Tensor) -> Tensor:
        return torch.ones_like(t)

    def sigma(self, t: Tensor) -> Tensor:
        return t

    def lambda_(self, t: Tensor) -> Tensor:
        return -t.log()

    def inverse(self, lam: Tensor) -> Tensor:
        return torch.exp(-lam)


@dataclass(frozen=True)
class VPLinear(NoiseSchedule):
    """Variance preserving with beta(t) linear on [0, 1] (Song et al. 2021, arXiv 2011.13456, eq. 32)."""

    beta_min: float = 0.1
    beta_max: float = 20.0
    t_min: float = 1e-3
    T: float = 1.0

    def __post_init__(self) -> None:
        _check_numbers(self)
        _check_times(self)
        if not 0 < self.beta_min <= self.beta_max:
            raise UserError(f"VP noise needs 0 < beta_min <= beta_max, got {self.beta_min} and {self.beta_max}")
        _check_levels(self)

    def log_alpha(self, t: Tensor) -> Tensor:
        return -0.25 * (self.beta_max - self.beta_min) * t**2 - 0.5 * self.beta_min * t

    def alpha(self, t: Tensor) -> Tensor:
        return self.log_alpha(t).exp()

    def sigma(self, t: Tensor) -> Tensor:
        return (-torch.expm1(2 * self.log_alpha(t))).sqrt()

    def lambda_(self, t: Tensor) -> Tensor:
        return self.log_alpha(t) - 0.5 * torch.log(-torch.expm1(2 * self.log_alpha(t)))

    def inverse(self, lam: Tensor) -> Tensor:
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

    def __post_init__(self) -> None:
        _check_numbers(self)
        _check_times(self)
        if not 0 <= self.s < math.inf:
            raise UserError(f"cosine noise needs s of 0 or more, got {self.s}")
        _check_levels(self)

    def _angle(self, t: Any) -> Any:
        return math.pi / 2 * (t + self.s) / (1 + self.s)

    def alpha(self, t: Tensor) -> Tensor:
        return self._angle(t).cos() / math.cos(self._angle(0.0))

    def sigma(self, t: Tensor) -> Tensor:
        return (1 - self.alpha(t) ** 2).sqrt()

    def lambda_(self, t: Tensor) -> Tensor:
        return self.alpha(t).log() - self.sigma(t).log()

    def inverse(self, lam: Tensor) -> Tensor:
        alpha = torch.sigmoid(2 * lam).sqrt()
        return torch.acos(alpha * math.cos(self._angle(0.0))) * 2 * (1 + self.s) / math.pi - self.s


@dataclass(frozen=True)
class VPDiscrete(NoiseSchedule):
    """The table alphas_cumprod of a discrete-time model; t is the (fractional) index, as the network sees it.

    Between two entries, log(alpha) is linear in t (DPM-Solver, Lu et al. 2022, App. D).
    """

    alphas_cumprod: tuple[float, ...]
    t_min: float = 0.0
    if TYPE_CHECKING:  # made of the table; no field
        _log_alpha: Tensor = field(init=False)

    def __post_init__(self) -> None:
        _check_numbers(self)
        if not isinstance(self.alphas_cumprod, tuple) or not all(map(is_number, self.alphas_cumprod)):
            raise UserError(f"alphas_cumprod must be a tuple of numbers, got {shown(self.alphas_cumprod)}")
        table = torch.tensor(self.alphas_cumprod, dtype=torch.float64, device="cpu")
        if table.ndim != 1 or len(table) < 2 or not ((table > 0) & (table < 1)).all() or not (table.diff() < 0).all():
            raise UserError("alphas_cumprod must be at least two numbers in (0, 1), strictly falling")
        object.__setattr__(self, "_log_alpha", 0.5 * table.log())
        _check_times(self, first=0.0)
        _check_levels(self)

    @property
    def T(self) -> float:
        return float(len(self.alphas_cumprod) - 1)

    def log_alpha(self, t: Tensor) -> Tensor:
        left = t.detach().floor().clamp(0, self.T - 1).long()
        table = self._log_alpha.to(t)  # in its dtype too: some devices have no float64
        low, high = table[left], table[left + 1]
        return low + (t - left) * (high - low)

    def alpha(self, t: Tensor) -> Tensor:
        return self.log_alpha(t).exp()

    def sigma(self, t: Tensor) -> Tensor:
        return (-torch.expm1(2 * self.log_alpha(t))).sqrt()

    def lambda_(self, t: Tensor) -> Tensor:
        return self.log_alpha(t) - 0.5 * torch.log(-torch.expm1(2 * self.log_alpha(t)))

    def inverse(self, lam: Tensor) -> Tensor:
        log_alpha = -0.5 * torch.nn.functional.softplus(-2 * lam)
        table = self._log_alpha.to(lam)
        right = torch.searchsorted(-table, -log_alpha.detach().contiguous()).clamp(1, len(table) - 1)
        low, high = table[right - 1], table[right]
        return (right - 1) + (log_alpha - low) / (high - low)


@dataclass(frozen=True)
class Flow(NoiseSchedule):
    """Flow matching with straight paths (Lipman et al. 2023, arXiv 2210.02747): alpha = 1 - t, sigma = t."""

    t_min: float = 1e-3
    T: float = 0.999  # at 1 there is no signal left, and lambda is infinite

    def __post_init__(self) -> None:
        _check_numbers(self)
        _check_times(self)
        if self.T >= 1:
            raise UserError(f"flow noise needs T below 1, where lambda is infinite, got {self.T}")
        _check_levels(self)

    def alpha(self, t: Tensor) -> Tensor:
        return 1 - t

    def sigma(self, t: Tensor) -> Tensor:
        return t

    def lambda_(self, t: Tensor) -> Tensor:
        return torch.log1p(-t) - t.log()

    def inverse(self, lam: Tensor) -> Tensor:
        return torch.sigmoid(-lam)


def _check_numbers(noise: Any) -> None:
    for entry in fields(noise):
        value = getattr(noise, entry.name)
        if entry.name != "alphas_cumprod" and not is_number(value):
            raise UserError(f"{type(noise).__name__} noise needs a number for {entry.name!r}, got {shown(value)}")


def _check_levels(noise: NoiseSchedule) -> None:
    """That the numbers, each of them possible, leave noise levels that can be computed with."""
    start, end = (noise.lambda_(torch.tensor(t, dtype=torch.float64, device="cpu")) for t in (noise.T, noise.t_min))
    if not (start.isfinite() and end.isfinite() and start < end):
        raise UserError(
            f"{type(noise).__name__} noise needs lambda to rise from T={noise.T:g} to t_min={noise.t_min:g}, and to be "
            f"finite, got {start.item():g} and {end.item():g}"
        )


def _check_times(noise: NoiseSchedule, first: float = 1e-12) -> None:
    if not first <= noise.t_min < noise.T < math.inf:
        raise UserError(f"{type(noise).__name__} noise needs 0 < t_min < T, got t_min={noise.t_min} and T={noise.T}")


NOISE: dict[str, Any] = {
    "ve": VE,
    "vp_linear": VPLinear,
    "vp_cosine": VPCosine,
    "vp_discrete": VPDiscrete,
    "flow": Flow,
}


def describe(noise: NoiseSchedule) -> dict[str, Any]:
    """Short JSON-ready data that describe a noise schedule. `from_description` is the exact inverse."""
    name = next(name for name, cls in NOISE.items() if type(noise) is cls)
    description: dict[str, Any] = {"name": name} | {f.name: getattr(noise, f.name) for f in fields(NOISE[name])}
    if isinstance(noise, VPDiscrete):
        description["alphas_cumprod"] = _describe_table(noise.alphas_cumprod)
    return description


def from_description(description: dict[str, Any]) -> NoiseSchedule:
    """The noise schedule that `describe` described.

    Raises:
        UserError: for an unknown name or parameter.
    """
    if not isinstance(description, dict):
        raise UserError(f"a noise schedule is described by a mapping, got {shown(description)}")
    parameters = dict(description)
    name = parameters.pop("name", None)
    if not isinstance(name, str) or name not in NOISE:
        raise unknown("noise schedule", name, NOISE)
    known = {f.name for f in fields(NOISE[name])}
    if name == "vp_discrete":
        parameters["alphas_cumprod"] = _table(parameters.get("alphas_cumprod", ()))
    for key, value in parameters.items():
        if key not in known:
            raise unknown(f"parameter of the {name} noise schedule", key, known)
        numbers = value if key == "alphas_cumprod" else [value]
        if not all(map(is_number, numbers)):
            raise UserError(f"the {name} noise schedule needs a number for {key!r}, got {shown(value)}")
    return NOISE[name](**parameters)


# How the betas of published models go from the first to the last; alphas_cumprod is the product of 1 - beta.
BETAS = {
    "linear": lambda first, last, count: torch.linspace(first, last, count, dtype=torch.float64),
    "scaled_linear": lambda first, last, count: torch.linspace(first**0.5, last**0.5, count, dtype=torch.float64) ** 2,
}


MOST = 100_000  # entries of a table that a file may ask for; models have 1000


def alphas_cumprod(betas: str, first: float, last: float, count: int) -> tuple[float, ...]:
    """The table of a model whose betas follow one of the rules in `BETAS`."""
    with torch.device("cpu"):  # not torch's default device, which may round otherwise
        return tuple((1 - BETAS[betas](first, last, count)).cumprod(0).tolist())


def _describe_table(table: tuple[float, ...]) -> dict | list | str:
    """A rule that gives exactly this table, or else the table itself; a long one in base64, to keep files small."""
    first, last = round(1 - table[0], 12), round(1 - table[-1] / table[-2], 12)
    for name in BETAS:
        rule: dict[str, Any] = {"betas": name, "first": first, "last": last, "count": len(table)}
        if first > 0 and last > 0 and alphas_cumprod(**rule) == table:
            return rule
    return list(table) if len(table) <= 100 else base64.b64encode(struct.pack(f"<{len(table)}d", *table)).decode()


def _table(description: Any) -> tuple[float, ...]:
    try:
        if isinstance(description, dict):
            if type(description["count"]) is not int or description["count"] > MOST:
                raise ValueError(f"no table has {description['count']} entries")
            return alphas_cumprod(**description)
        if isinstance(description, str):
            packed = base64.b64decode(description, validate=True)
            return struct.unpack(f"<{len(packed) // 8}d", packed)
        return tuple(description)
    except (TypeError, ValueError, KeyError, RuntimeError, OverflowError, RecursionError, struct.error):
        raise UserError(
            "the vp_discrete noise schedule needs alphas_cumprod as a list of numbers, as float64 in base64, or as "
            f"betas ({' or '.join(BETAS)}), first, last and count (of at most {MOST}), got {shown(description)}"
        ) from None


def precision(device: torch.device) -> torch.dtype:
    """The dtype of a solver's states: float64, or float32 on a device without float64."""
    return torch.float32 if device.type == "mps" else torch.float64
