"""The images of handwritten digits that the embedded models are trained on."""

import torch
from torch import Tensor

from s4spipe.runtime.errors import needs


def images() -> tuple[Tensor, Tensor]:
    """All images, float32 [1797, 1, 8, 8] in [-1, 1], and their labels, int64 [1797]."""
    with needs("pipeline", "the images of handwritten digits"):
        from sklearn.datasets import load_digits  # takes a second to import

    data = load_digits()
    return torch.tensor(data.images[:, None] / 8 - 1, dtype=torch.float32), torch.tensor(data.target)
