"""The inner problem of the relaxed objective: noises may move within a ball (S4S, Frankel et al. 2025, Sec. 3.1.2)."""

from torch import Tensor


def radius(factor: float, dim: int, m: int) -> float:
    """r = factor * dim(x) * m^(-5/2), in units of sigma_T (App. D: proportional to m^(-5/2), m learned parameters)."""
    return factor * dim * m**-2.5


def project(moved: Tensor, centre: Tensor, limit: float) -> Tensor:
    """`moved` [B, ...], each pulled back to within Euclidean distance `limit` of its `centre`."""
    offset = (moved - centre).flatten(1)
    scale = (limit / offset.norm(dim=1, keepdim=True).clamp(min=1e-30)).clamp(max=1)
    return centre + (offset * scale).view_as(moved)
