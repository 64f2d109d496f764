"""The Fréchet distance between the features of two sets of images, and its gradient."""

import torch
from torch import Tensor

from s4spipe.runtime.errors import UserError

Statistics = tuple[Tensor, Tensor]  # mean [d] and covariance [d, d], float64


def statistics(features: Tensor) -> Statistics:
    """Mean [d] and covariance [d, d] of features [n, d]."""
    return features.mean(0), torch.atleast_2d(torch.cov(features.T))


def distance(own: Statistics, goal: Statistics) -> float:
    """|m - m_g|^2 + tr(S + S_g - 2 (S S_g)^(1/2)) (Heusel et al. 2017, arXiv 1706.08500, eq. 6), at least 0.

    Raises UserError for statistics of different numbers of features, and for numbers that are not finite.
    """
    if own[0].shape != goal[0].shape:
        raise UserError(f"statistics of {len(own[0])} features cannot be compared with those of {len(goal[0])}: they "
                        "come from different networks")  # fmt: skip
    if not all(part.isfinite().all() for part in (*own, *goal)):
        raise UserError("the statistics of features hold numbers that are not finite: make them again")
    _, values, _ = _spectrum(own, goal)
    return max(0.0, _value(own, goal, values).item())  # rounding may take that of a set from itself below 0


def between(features: Tensor, goal: Tensor) -> float:
    """The distance between features [n, d] and those of a goal [m, d]."""
    return distance(statistics(features), statistics(goal))


def extrapolated(features: Tensor, goal: Tensor) -> float:
    """The distance between features [n, d] and those of a goal [n, d], as it would be with infinitely many of both.

    With n of them, it is too large by about b / n (Chong and Forsyth 2020, arXiv 1911.07023, sec. 4). So b is told from
    the distances of two halves. Row i of both must belong together, so that their errors are alike. The result may be
    below 0. With fewer than 4 rows, which have no halves, it is the distance between them as it is.
    """
    if len(features) < 4:
        return between(features, goal)
    halves = [between(features[k::2], goal[k::2]) for k in (0, 1)]
    return 2 * between(features, goal) - sum(halves) / 2


def distance_and_slope(features: Tensor, goal: Statistics) -> tuple[float, Tensor]:
    """The distance of features [n, d] from a goal, and n times its gradient by the features.

    The distance is the smallest mean of |f - T f|^2 over all maps T that take the mean and covariance of the features
    to those of the goal. The minimum is T f = m_g + A (f - m) with A = S_g^1/2 (S_g^1/2 S S_g^1/2)^-1/2 S_g^1/2 (Dowson
    and Landau 1982; Olkin and Pukelsheim 1982). At a minimum, the gradient is that with T held fixed: 2 (f - T f). The
    distance of features that are not finite is infinite.
    """
    if not features.isfinite().all():
        return float("inf"), torch.zeros_like(features)
    own = mean, _ = statistics(features)
    r, values, vectors = _spectrum(own, goal)
    kept = values > 1e-10 * values.max()  # with fewer samples than features, S is singular
    A = r @ (vectors * torch.where(kept, values, torch.inf).rsqrt()) @ vectors.T @ r
    centred = features - mean
    unbiased = len(features) / (len(features) - 1)  # as in the covariance
    return _value(own, goal, values).item(), 2 * (unbiased * (centred - centred @ A) + mean - goal[0])


def _spectrum(own: Statistics, goal: Statistics) -> tuple[Tensor, Tensor, Tensor]:
    """S_g^1/2, and the eigenvalues and eigenvectors of S_g^1/2 S S_g^1/2, which is symmetric, so all are real."""
    r = root(goal[1])
    values, vectors = torch.linalg.eigh(r @ own[1] @ r)
    return r, values.clamp(min=0), vectors


def _value(own: Statistics, goal: Statistics, values: Tensor) -> Tensor:
    (mean, S), (mean_g, S_g) = own, goal
    return (mean - mean_g).square().sum() + S.trace() + S_g.trace() - 2 * values.sqrt().sum()


def root(matrix: Tensor) -> Tensor:
    """The symmetric square root of a positive semi-definite matrix [d, d]."""
    values, vectors = torch.linalg.eigh(matrix)
    return (vectors * values.clamp(min=0).sqrt()) @ vectors.T
