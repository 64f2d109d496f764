"""What the tests of learning learn: a small nonlinear denoiser, and a teacher's pairs of it."""

import torch

from s4spipe.learning.pairs import Pairs
from s4spipe.learning.task import Task
from s4spipe.noise import VE
from s4spipe.runtime.scratch import Scratch
from s4spipe.sampling.loop import sample
from s4spipe.solvers import registry
from support.problems import Gaussian, noises

NOISE = VE(0.01, 20.0)


class Net(torch.nn.Module):
    """A denoiser with a nonlinearity, so that a fit has something to do, and a count of its calls and of their rows."""

    def __init__(self):
        super().__init__()
        self.problem, self.calls, self.rows = Gaussian(NOISE), 0, 0

    def forward(self, x, t, condition=None):
        self.calls += 1
        self.rows += len(x)
        return torch.tanh(2 * self.problem(x, t)) * (1 if condition is None else condition[:, None])


class Killed(Exception):
    pass


class Dying(Net):
    """Raises Killed at a call in the midst of learning."""

    def forward(self, x, t, condition=None):
        if self.calls == 60:
            raise Killed
        return super().forward(x, t, condition)


def pairs(n, seed, net, condition=None):
    x_T = noises(n, scale=NOISE.sigma_T, seed=seed)
    teacher = registry.make("dpmpp_2m", "logsnr", NOISE, 60)
    return Pairs(x_T, sample(net, teacher, x_T, condition), condition)


def task(student, folder, training=60, validation=30, net=None, **options):
    """`training` and `validation`: pairs, or how many. What was learned so far is kept in `folder`."""
    teacher = Net()
    training, validation = (
        pairs(given, seed, teacher) if isinstance(given, int) else given
        for given, seed in ((training, 1), (validation, 2))
    )
    return Task(student, teacher if net is None else net, training, validation, Scratch(folder), **options)


def parameters(student):
    return torch.cat([p.detach().flatten() for p in student.parameters()])
