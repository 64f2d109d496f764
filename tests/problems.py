"""Diffusion problems with known answers, and noise schedules to put them on."""

import torch

from s4spipe.noise import VE, VPCosine, VPDiscrete, VPLinear

BETAS = torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64) ** 2  # Stable Diffusion's "scaled_linear"
NOISES = {
    "ve": VE(),
    "vp_linear": VPLinear(),
    "vp_cosine": VPCosine(),
    "vp_discrete": VPDiscrete(tuple((1 - BETAS).cumprod(0).tolist())),
}


class Gaussian:
    """Data N(mean, std^2), whose denoiser and probability-flow solution are formulas."""

    def __init__(self, noise, mean=0.4, std=0.5):
        self.noise_schedule, self.mean, self.std = noise, mean, std
        self.sample_shape, self.num_classes, self.calls = (3,), 0, 0

    def __call__(self, x, t, condition=None):
        self.calls += 1
        alpha, sigma = self.noise_schedule.alpha(t), self.noise_schedule.sigma(t)
        gain = alpha * self.std**2 / (alpha**2 * self.std**2 + sigma**2)
        return self.mean + gain * (x - alpha * self.mean)

    def solution(self, x_T, t_end):
        """The exact probability flow keeps (x - alpha mean) / sqrt(alpha^2 std^2 + sigma^2)."""

        def mean_and_deviation(t):
            t = torch.tensor(t, dtype=torch.float64)
            alpha, sigma = self.noise_schedule.alpha(t), self.noise_schedule.sigma(t)
            return alpha * self.mean, (alpha**2 * self.std**2 + sigma**2).sqrt()

        (m0, s0), (m1, s1) = mean_and_deviation(self.noise_schedule.T), mean_and_deviation(t_end)
        return m1 + (x_T - m0) / s0 * s1


def wavy(x, t, condition=None):
    """No diffusion model, only a smooth nonlinear function of x and t: two solvers that agree on it agree."""
    return torch.tanh(1.3 * x / (1 + t) + torch.sin(t)) + 0.1 * x.flip(-1) / (1 + t)


def noises(n=4, dim=3, scale=1.0, seed=0):
    return scale * torch.randn(n, dim, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
