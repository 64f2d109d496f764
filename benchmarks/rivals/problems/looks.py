"""Networks that look at the confirmation models' samples: what the fits may see, and what judges them.

They differ in their task and in their architecture. What the fits see by is a classifier: strided convolutions tell
which photograph a patch is from, and how it was turned. The judge removes noise, by pooling, wide kernels and residual
blocks.
"""

from torch import Tensor, nn
from torch.nn.functional import avg_pool2d

TURNS = 4


class Classifier(nn.Module):
    """Tells photograph and quarter turns of patches [B, channels, side, side] in [-1, 1]; features [B, 64]."""

    def __init__(self, channels: int, side: int, photographs: int):
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(channels, 24, 3, stride=side // 16, padding=1),
            nn.SiLU(),
            nn.Conv2d(24, 48, 3, stride=2, padding=1),
            nn.SiLU(),
            nn.Conv2d(48, 64, 3, stride=2, padding=1),
            nn.SiLU(),
            nn.Flatten(),
            nn.Linear(16 * 64, 64),
            nn.SiLU(),
        )
        self.head = nn.Linear(64, TURNS * photographs)

    def features(self, images: Tensor) -> Tensor:
        return self.layers(images)

    def forward(self, images: Tensor) -> Tensor:
        """Logits [B, 4 photographs]."""
        return self.head(self.features(images))


class Mixing(nn.Module):
    """x + a pointwise network of a depthwise convolution, as in ConvNeXt (Liu et al. 2022, arXiv 2201.03545)."""

    def __init__(self, width: int):
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(width, width, 5, padding=2, groups=width),
            nn.GroupNorm(1, width),
            nn.Conv2d(width, 2 * width, 1),
            nn.GELU(),
            nn.Conv2d(2 * width, width, 1),
        )

    def forward(self, x: Tensor) -> Tensor:
        return x + self.layers(x)


class Restorer(nn.Module):
    """Removes noise from patches [B, channels, side, side], through a code of 24 channels on a grid of 4x4.

    Features [B, 96] are the code's means over the quarters of the image.
    """

    def __init__(self, channels: int, side: int, width: int = 48, code: int = 24):
        super().__init__()
        self.cell = side // 4
        half = self.cell // 2
        self.encoder = nn.Sequential(
            nn.PixelUnshuffle(half),
            nn.Conv2d(channels * half**2, width, 1),
            Mixing(width),
            nn.AvgPool2d(2),
            Mixing(width),
            nn.Conv2d(width, code, 1),
            nn.GELU(),
        )
        self.decoder = nn.Sequential(
            nn.Conv2d(code, 128, 3, padding=1),
            nn.GELU(),
            nn.Conv2d(128, channels * self.cell**2, 1),
            nn.PixelShuffle(self.cell),
        )

    def forward(self, images: Tensor) -> Tensor:
        """The clean images."""
        return self.decoder(self.encoder(images))

    def features(self, images: Tensor) -> Tensor:
        return avg_pool2d(self.encoder(images), 2).flatten(1)
