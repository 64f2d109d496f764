"""Coordinates of a solver's coefficients in which the loss is curved alike in every direction.

Successive evaluations of the network are nearly alike. So a step's weights count by their sum, and far less by how it
is divided among them. A learning rate at which the sum does not overshoot is too low for the rest to get anywhere.
"""

from collections.abc import Mapping

import torch
from torch import nn

from s4spipe.learning import adjoint
from s4spipe.learning.distance import Distance
from s4spipe.learning.gauss_newton import PROBES, Parameters, Problem
from s4spipe.learning.task import COEFFICIENTS, Task, kind

PAIRS = 100  # from which the curvature is computed
EVALUATIONS = PAIRS * adjoint.evaluations(1, 1 + PROBES)  # of the network that it takes, for each of a sample
DAMPING = 1e-3  # of the curvature: coordinates that hardly matter are not stretched beyond measure
STRIDE = 3.0  # so that the learning rate that suits the times suits v as well


class Whitened:
    """The coefficients as u = u_0 + A v, with a learned v that is 0 at first.

    A = a sqrt(loss) L^-T, where L L^T is the damped Gauss-Newton curvature of the loss (Cholesky). So v = 1 in any
    direction raises the loss by about half of a^2 times itself, besides its slope.

    Attributes:
        v: [P], float64.
    """

    def __init__(self, task: Task, distance: Distance, batch_size: int):
        self.task = task
        self.parameters = Parameters(task.student, (COEFFICIENTS,))
        size = min(task.micro_batch_size, batch_size)  # no more memory than learning takes
        self.problem = Problem(self.parameters, task.denoiser, distance, size)
        self.start = self.parameters.get()
        self.v = nn.Parameter(torch.zeros_like(self.start))

    @classmethod
    def of(cls, task: Task, distance: Distance, batch_size: int) -> "Whitened | None":
        """None for a student without coefficients."""
        has = any(kind(name) == COEFFICIENTS for name, _ in task.student.named_parameters())
        return cls(task, distance, batch_size) if has else None

    def instead(self, parameters: Mapping[str, nn.Parameter]) -> dict[str, nn.Parameter]:
        """The parameters of a student by name, with v instead of the coefficients."""
        return {COEFFICIENTS: self.v} | {name: p for name, p in parameters.items() if kind(name) != COEFFICIENTS}

    def begin(self, number: int) -> None:
        """Make the student's present coefficients those of v = 0; `number` is the seed of the probes."""
        some = self.task.training.take(torch.arange(min(PAIRS, len(self.task.training))))
        loss, _, curvature = self.problem.linearised(some, number)
        curved = curvature.diag()
        self.by_v = torch.eye(len(curved), dtype=curved.dtype)
        if curvature.isfinite().all() and curved.any():  # else samples diverge, or the loss hangs on no coefficient
            lower = torch.linalg.cholesky(curvature + DAMPING * torch.diag(curved + curved.mean()))
            self.by_v = STRIDE * loss**0.5 * torch.linalg.inv(lower).T
        self.start = self.parameters.get()
        nn.init.zeros_(self.v)

    def pull(self) -> None:
        """The gradient of v, from that of the coefficients."""
        self.v.grad = self.by_v.T @ self.parameters.gradient()

    def push(self) -> None:
        """The coefficients, from v."""
        self.parameters.put(self.start + self.by_v @ self.v.detach())
