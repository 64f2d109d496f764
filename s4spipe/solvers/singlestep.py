"""From per-step coefficients to a tableau: single-step exponential methods; the algorithms of Heun, F-DPM and PNDM."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from torch import Tensor

from s4spipe.models.noise import NoiseSchedule
from s4spipe.sampling.tableau import Tableau
from s4spipe.solvers.multistep import Form, combine, step_weights
from s4spipe.solvers.symbolic import Trace


@dataclass(frozen=True, eq=False)
class SingleStep:
    """Coefficients of a single-step method: each of its S steps uses p evaluations of its own (S4S, App. B, "SS").

    The step from s to u evaluates the network at u_0 = s and at u_j = t(lambda_s + r[j-1] (lambda_u - lambda_s)) for
    j = 1 .. p-1. With the weights of `step_weights`, the states there and at u_p = u are

        x_j = keep(s, u_j) x_s + gain(s, u_j) sum_{l<j} a[j-1, l] d_l      (d: data or noise predictions)

    Attributes:
        form: as for `Multistep`.
        r: S tensors [p-1]; a step with p = 1 has an empty one.
        a: S tensors [p, p], lower triangular.
    """

    form: Form
    r: Sequence[Tensor]
    a: Sequence[Tensor]

    def tableau(
        self, noise: NoiseSchedule, t: Tensor, name: str, meta: dict | None = None, afs: bool | Tensor = False
    ) -> Tableau:
        """The tableau of this method on the times t [S+1]; `afs` as in `Trace`."""
        net = Trace(noise, sum(map(len, self.a)), afs)
        evaluate = net.predict(self.form)
        x = net.x_T
        for (s, u), r, a in zip(pairwise(t), self.r, self.a, strict=True):
            start, h = noise.lambda_(s), noise.lambda_(u) - noise.lambda_(s)
            ends = [*noise.inverse(start + r * h), u]
            d = [evaluate(x, s)]
            for j, end in enumerate(ends):
                keep, gain = step_weights(noise, s, end, self.form)
                y = keep * x + gain * sum(a[j, l] * d[l] for l in range(j + 1))  # noqa: E741
                if j < len(r):
                    d.append(evaluate(y, end))
            x = y
        return net.tableau(x, t, name, meta)


def heun(net: Trace, t: Tensor, evals_per_step: Sequence[int]) -> Tensor:
    """Heun in the time of the noise schedule (Karras et al. 2022, arXiv 2206.00364, Alg. 1).

    A step with a single evaluation is an Euler step. For VE noise it is Heun in sigma, for flow matching Heun on the
    velocity.
    """
    x = net.x_T
    for (s, u), evals in zip(pairwise(t), evals_per_step, strict=True):
        first = net.velocity(x, s)
        euler = x + (u - s) * first
        x = euler if evals == 1 else x + (u - s) / 2 * (first + net.velocity(euler, u))
    return x


def fdpm(net: Trace, t: Tensor, evals_per_step: Sequence[int]) -> Tensor:
    """F-DPM-Solver (arXiv 2512.24927): DDIM whose steps take the data prediction at their end, not at their start.

    The state there is that of a DDIM step with the prediction before. The first step has none before, and spends an
    evaluation at its start on it.
    """
    x = net.x_T
    data = net.data(x, t[0])
    for s, u in pairwise(t):
        keep, gain = step_weights(net.noise, s, u, "data")
        data = net.data(keep * x + gain * data, u)
        x = keep * x + gain * data
    return x


def pndm(net: Trace, t: Tensor, evals_per_step: Sequence[int]) -> Tensor:
    """PNDM (Liu et al. 2022, arXiv 2202.09778, Alg. 2, eq. 12 and 13): classical formulas inside a DDIM step.

    A step with 4 evaluations is its pseudo Runge-Kutta step. One with 2 is the pseudo improved Euler step with which
    the authors' code and diffusers start if they do not use Runge-Kutta. One with 1 is a linear multistep step with the
    weights of equal steps, of the highest order that the history allows, at most 4.
    """
    noise = net.noise

    def transfer(x: Tensor, eps: Tensor, s: Tensor, u: Tensor) -> Tensor:
        keep, gain = step_weights(noise, s, u, "noise")
        return keep * x + gain * eps

    x = net.x_T
    history: list[Tensor] = []  # newest first
    for (s, u), evals in zip(pairwise(t), evals_per_step, strict=True):
        history.insert(0, net.eps(x, s))
        if evals == 4:
            middle = (s + u) / 2
            e2 = net.eps(transfer(x, history[0], s, middle), middle)
            e3 = net.eps(transfer(x, e2, s, middle), middle)
            e4 = net.eps(transfer(x, e3, s, u), u)
            eps = (history[0] + 2 * e2 + 2 * e3 + e4) / 6
        elif evals == 2:
            eps = (history[0] + net.eps(transfer(x, history[0], s, u), u)) / 2
        else:
            weights = ADAMS_BASHFORTH[min(len(history), 4) - 1]
            eps = combine(weights, history)
        x = transfer(x, eps, s, u)
    return x


# The weights of equal steps, newest evaluation first, by order.
ADAMS_BASHFORTH = ([1], [3 / 2, -1 / 2], [23 / 12, -16 / 12, 5 / 12], [55 / 24, -59 / 24, 37 / 24, -9 / 24])
