"""Latents in tokens, as Flux's pipeline hands them to its scheduler: [B, C, H, W] is cut into patches of 2x2, and each
patch is one of H W / 4 tokens of 4 C numbers. Weights by frequency are those of the image."""

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from s4spipe.runtime.checks import whole
from s4spipe.runtime.errors import UserError, shown

PATCH = 2  # latents per side of a token


@dataclass(frozen=True)
class Grid:
    """How the tokens of an image lie, row by row; without rows, samples are no tokens and stay as they are."""

    rows: int = 0
    columns: int = 0

    def image(self, x: Tensor) -> Tensor:
        """Tokens [B, rows columns, 4 C] as latents [B, C, 2 rows, 2 columns]."""
        if not self.rows:
            return x
        patches = x.unflatten(2, (-1, PATCH, PATCH)).unflatten(1, (self.rows, self.columns))
        return patches.permute(0, 3, 1, 4, 2, 5).flatten(4).flatten(2, 3)

    def tokens(self, x: Tensor) -> Tensor:
        """The inverse of `image`."""
        if not self.rows:
            return x
        patches = x.unflatten(3, (self.columns, PATCH)).unflatten(2, (self.rows, PATCH))
        return patches.permute(0, 2, 4, 1, 3, 5).flatten(3).flatten(1, 2)


def check_size(size: Sequence[int] | None) -> None:
    """Raises UserError for anything but None, or the height and the width of an image in pixels."""
    if size is None:
        return
    if not isinstance(size, list | tuple) or len(size) != 2:
        raise UserError(f"size must be the height and the width of the images in pixels, got {shown(size)}")
    for side, value in zip(("height", "width"), size, strict=True):
        whole(f"{side} in size", value)


def grid(x: Tensor, size: Sequence[int] | None, axes: int) -> Grid:
    """How tokens lie in their image.

    Args:
        x: tokens [B, L, 4 C]; samples of other dimensions are none.
        size: height and width of the image in pixels; None if samples are no tokens.
        axes: over how many axes of an image the solver has weights by frequency, or a constant; 0 if it has neither.

    Raises:
        UserError: if L tokens cannot be those of such an image, or if two axes or more are given tokens without a
            size.
    """
    if x.ndim != 3 or (size is None and axes < 2):
        return Grid()
    if size is None:
        raise UserError(f"latents {list(x.shape)} are tokens, and this solver has weights by frequency, or a mean "
                        f"image, over {axes} axes: say how high and wide the images are in pixels, as in "
                        "S4SScheduler.from_tableau(solver, config, size=(1024, 768))")  # fmt: skip
    check_size(size)
    (height, width), count = size, x.shape[1]
    for rows in range(1, count + 1):
        columns = count // rows
        # Pipelines round sides down to whole tokens, so an interval is known for the side of a token in pixels.
        most, least = min(height / rows, width / columns), max(height / (rows + 1), width / (columns + 1))
        if rows * columns == count and least < most and x.shape[2] % PATCH**2 == 0:
            return Grid(rows, columns)
    raise UserError(f"size: latents {list(x.shape)} are not those of an image of {height}x{width} pixels, cut into "
                    f"{PATCH}x{PATCH} patches")  # fmt: skip
