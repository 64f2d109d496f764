"""A model with a known answer: a mixture of Gaussians in 192 dimensions, whose denoiser is a formula."""

import torch
from torch import Tensor, nn

PARTS, SHAPE = 10, (3, 8, 8)
DIM = SHAPE[0] * SHAPE[1] * SHAPE[2]


class Mixture(nn.Module):
    """x0 = m_k + U_k diag(s_k) z with probability w_k; the s_k fall by a power law, as spectra of images do.

    Its interface is EDM's: (x, sigma, class_labels) -> E[x0 | x].
    """

    img_channels, img_resolution, sigma_min, sigma_max, label_dim = SHAPE[0], SHAPE[1], 0.002, 80.0, 0

    def __init__(self, seed: int = 0):
        super().__init__()
        rng = torch.Generator().manual_seed(seed)

        def normal(*shape: int) -> Tensor:
            return torch.randn(*shape, generator=rng, dtype=torch.float64)

        falling = torch.arange(1, DIM + 1, dtype=torch.float64) ** -0.75
        spread = 0.35 * (DIM / falling.square().sum()).sqrt() * falling
        self.rotation = nn.Parameter(torch.linalg.qr(normal(PARTS, DIM, DIM))[0])
        self.std = nn.Parameter(spread * (0.5 + torch.rand(PARTS, 1, generator=rng, dtype=torch.float64)))
        self.mean = nn.Parameter(0.4 * normal(PARTS, DIM))
        self.share = nn.Parameter(torch.softmax(0.5 * normal(PARTS), 0))

    def forward(self, x: Tensor, sigma: Tensor, class_labels: None = None) -> Tensor:
        z = torch.einsum("bkd,kde->bke", x.flatten(1)[:, None] - self.mean, self.rotation)
        variance = self.std.square() + sigma.view(-1, 1, 1).square()
        log = self.share.log() - 0.5 * (z.square() / variance + variance.log()).sum(-1)
        each = self.mean + torch.einsum("bke,kde->bkd", z * self.std.square() / variance, self.rotation)
        return (torch.softmax(log, 1)[..., None] * each).sum(1).view_as(x)

    def data(self, n: int, seed: int = 0) -> Tensor:
        """[n, *SHAPE]: independent samples of the mixture itself."""
        rng = torch.Generator().manual_seed(seed)
        k = torch.multinomial(self.share, n, replacement=True, generator=rng)
        z = torch.randn(n, DIM, generator=rng, dtype=torch.float64) * self.std[k]
        drawn = torch.empty_like(z)
        for part in range(PARTS):
            drawn[k == part] = self.mean[part] + z[k == part] @ self.rotation[part].T
        return drawn.view(n, *SHAPE)


class RandomFeatures(nn.Module):
    """A random network: what it sees is not what another seed's sees."""

    def __init__(self, seed: int, width: int):
        super().__init__()
        rng = torch.Generator().manual_seed(seed)
        self.first = nn.Parameter(torch.randn(DIM, 128, generator=rng) * (2 / DIM) ** 0.5)
        self.second = nn.Parameter(torch.randn(128, width, generator=rng) / 128**0.5)

    def forward(self, x: Tensor) -> Tensor:
        return torch.tanh(x.float().flatten(1) @ self.first) @ self.second
