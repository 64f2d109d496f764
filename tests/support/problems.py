"""Diffusion problems with known answers, and noise schedules to put them on."""

import torch

from s4spipe.noise import VE, Flow, VPCosine, VPDiscrete, VPLinear
from s4spipe.solvers.dpm_v3 import Statistics

BETAS = torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64) ** 2  # Stable Diffusion's "scaled_linear"
NOISES = {
    "ve": VE(),
    "vp_linear": VPLinear(),
    "vp_cosine": VPCosine(),
    "vp_discrete": VPDiscrete(tuple((1 - BETAS).cumprod(0).tolist())),
    "flow": Flow(),
}


class Gaussian:
    """Data N(mean, std^2), whose denoiser and probability-flow solution are formulas."""

    def __init__(self, noise, mean=0.4, std=0.5):
        self.noise_schedule, self.mean, self.std = noise, mean, std
        self.sample_shape, self.num_classes, self.calls = (3,), 0, 0

    def __call__(self, x, t, condition=None):
        self.calls += 1
        t = per_sample(t)
        alpha, sigma = self.noise_schedule.alpha(t), self.noise_schedule.sigma(t)
        gain = alpha * self.std**2 / (alpha**2 * self.std**2 + sigma**2)
        return self.mean + gain * (x - alpha * self.mean)

    def marginal(self, t):
        """The mean and the variance of the noised data."""
        t = torch.tensor(t, dtype=torch.float64)
        alpha, sigma = self.noise_schedule.alpha(t), self.noise_schedule.sigma(t)
        return alpha * self.mean, alpha**2 * self.std**2 + sigma**2

    def solution(self, x_T, t_end):
        """The exact probability flow keeps (x - alpha mean) / sqrt(alpha^2 std^2 + sigma^2)."""
        (m0, v0), (m1, v1) = self.marginal(self.noise_schedule.T), self.marginal(t_end)
        return m1 + (x_T - m0) / v0.sqrt() * v1.sqrt()


class Mixture:
    """Every coordinate of the data, on its own, from a mixture of two Gaussians."""

    means, stds, shares = (torch.tensor(v, dtype=torch.float64) for v in ([-0.8, 0.5], [0.3, 0.2], [0.4, 0.6]))

    def __init__(self, noise):
        self.noise_schedule = noise

    def _parts(self, t):
        alpha, sigma = self.noise_schedule.alpha(t), self.noise_schedule.sigma(t)
        return alpha, alpha * self.means, (alpha**2 * self.stds**2 + sigma**2).sqrt()

    def __call__(self, x, t, condition=None):
        """E[x_0 | x_t]: the parts' denoisers, weighted by their posterior shares."""
        alpha, means, deviations = self._parts(t[:, None, None] if t.ndim else t)
        z = (x[..., None] - means) / deviations
        shares = torch.softmax(self.shares.log() - deviations.log() - z**2 / 2, -1)
        return (shares * (self.means + alpha * self.stds**2 / deviations * z)).sum(-1)

    def cdf(self, x, t):
        _, means, deviations = self._parts(torch.as_tensor(t, dtype=torch.float64))
        return (self.shares * torch.special.ndtr((x[..., None] - means) / deviations)).sum(-1)

    def quantile(self, p, t):
        """By bisection."""
        low, high = torch.full_like(p, -1e3), torch.full_like(p, 1e3)
        for _ in range(200):
            middle = (low + high) / 2
            below = self.cdf(middle, t) < p
            low, high = torch.where(below, middle, low), torch.where(below, high, middle)
        return (low + high) / 2

    def draw(self, n, dim=3):
        """Noised data at T, so that no quantile is lost in the tails."""
        p = 0.02 + 0.96 * torch.rand(n, dim, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
        return self.quantile(p, self.noise_schedule.T)

    def solution(self, x_T, t_end):
        """A probability flow in one dimension keeps the quantile."""
        return self.quantile(self.cdf(x_T, self.noise_schedule.T), t_end)


def wavy(x, t, condition=None):
    """No diffusion model, only a smooth nonlinear function of x and t: two solvers that agree on it agree."""
    t = per_sample(t)
    return torch.tanh(1.3 * x / (1 + t) + torch.sin(t)) + 0.1 * x.flip(-1) / (1 + t)


def march(denoiser, tableau, x_T):
    """What `sample` computes, as matrix products into one array: fast for hundreds of steps, and without gradients."""
    d = torch.zeros(tableau.nfe, *x_T.shape, dtype=x_T.dtype)
    y = tableau.c_0 * x_T
    for i in range(tableau.nfe):
        d[i] = denoiser(y, tableau.t_c[i])
        y = tableau.c[i] * x_T + torch.tensordot(tableau.W[i, : i + 1], d[: i + 1], 1)
    return y


def per_sample(t):
    """A time for all samples, or [B] one for each, shaped to go with x [B, dim]."""
    return t[:, None] if t.ndim else t


def noises(n=4, dim=3, scale=1.0, seed=0):
    return scale * torch.randn(n, dim, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


class Known(Statistics):
    """Statistics that are known functions of lambda: l, s and b are [..., *K] for lambdas [...]."""

    def __init__(self, noise, points=13, **functions):
        ends = noise.lambda_(torch.tensor([noise.T, noise.t_min], dtype=torch.float64))
        grid = torch.linspace(*ends.tolist(), points, dtype=torch.float64)
        object.__setattr__(self, "functions", functions)
        super().__init__(grid, *(functions[name](grid) for name in ("l", "s", "b")))

    def at(self, name, lam):
        return self.functions[name](lam)


def constants(noise, l=1.0, s=0.0, b=0.0):  # noqa: E741
    """Statistics that are numbers; by default those with which DPM-Solver-v3 is exponential Adams-Bashforth."""
    ends = noise.lambda_(torch.tensor([noise.T, noise.t_min], dtype=torch.float64))
    return Statistics(ends, *(torch.full((2,), value, dtype=torch.float64) for value in (l, s, b)))


def moments(problem, tableau):
    """The mean and the variance of a solver's samples of Gaussian data from the noised data at T, exactly: with a
    denoiser that is affine, the sample is affine in x_T and the fresh noises."""
    unit = torch.eye(2 + tableau.draws, dtype=torch.float64)  # 1, x_T, z_0, ..
    d = torch.zeros(tableau.nfe, len(unit), dtype=torch.float64)
    y = tableau.c_0 * unit[1]
    for i in range(tableau.nfe):
        shift, gain = _affine(problem, tableau.t_c[i])
        d[i] = shift * unit[0] + gain * y
        y = tableau.c[i] * unit[1] + tableau.W[i, : i + 1] @ d[: i + 1]
        y[2:] += 0 if tableau.V is None else tableau.V[i + 1]
    start_mean, start_variance = problem.marginal(tableau.noise.T)
    return y[0] + y[1] * start_mean, y[1] ** 2 * start_variance + y[2:].square().sum()


def _affine(problem, t):
    at = problem(torch.tensor([[0.0], [1.0]], dtype=torch.float64), t)
    return at[0, 0], at[1, 0] - at[0, 0]
