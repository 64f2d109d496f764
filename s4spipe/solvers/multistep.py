"""From per-step coefficients to a tableau: linear multistep methods, with or without a corrector."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from s4spipe.models.noise import NoiseSchedule
from s4spipe.sampling.tableau import Tableau
from s4spipe.solvers.symbolic import Trace

Form = Literal["data", "noise", "velocity"]


@dataclass(frozen=True, eq=False)
class Multistep:
    """Coefficients of a multistep method of history length k over N steps (S4S, Frankel et al. 2025, App. B).

    With h_i = lambda_i - lambda_{i-1}, step i = 1 .. N makes

        data:   x_i = (sigma_i/sigma_{i-1}) x_{i-1} - alpha_i expm1(-h_i) sum_j b[i-1, j] d_{i-1-j}
        noise:  x_i = (alpha_i/alpha_{i-1}) x_{i-1} - sigma_i expm1(h_i)  sum_j b[i-1, j] eps_{i-1-j}
        velocity: x_i = x_{i-1} + (t_i - t_{i-1}) sum_j b[i-1, j] v_{i-1-j},  v = dx/dt as in `Trace.velocity`

    A solver of an SDE, in the data form, also shrinks the state by e^(-g_i), and adds as much noise as that takes away:

        x_i = (sigma_i/sigma_{i-1}) e^(-g_i) x_{i-1} - alpha_i expm1(-h_i - g_i) sum_j b[i-1, j] d_{i-1-j}
              + sigma_i sqrt(1 - e^(-2 g_i)) z_{i-1}

    Attributes:
        form: which of the three formulas.
        b: [N, k], newest evaluation first. Entries that would reach back before the first evaluation are not used.
        corrector: None or [N-1, k+1]. After the evaluation at the predicted x_i, the state x_i is re-computed from
            x_{i-1} by the same formula with these weights, of which the first is for the new evaluation. The evaluation
            itself is kept, so a corrector adds none (UniC of UniPC, Zhao et al. 2023). The last step has no corrector.
        g: None for the ODE, or [N].
    """

    form: Form
    b: Tensor
    corrector: Tensor | None = None
    g: Tensor | None = None

    def tableau(
        self,
        noise: NoiseSchedule,
        t: Tensor,
        name: str,
        meta: dict | None = None,
        t_c: Tensor | None = None,
        afs: bool | Tensor = False,
    ) -> Tableau:
        """The tableau of this method on the times `t` [N+1].

        `t_c` [N] are the times shown to the network, by default t without the last one; alpha, sigma and h always
        belong to `t`. With `afs`, the first evaluation is made without the network (see `Trace`).
        """
        n = len(t) - 1
        t_c = t[:-1] if t_c is None else t_c
        keep, gain = self.step_weights(noise, t)
        net = Trace(noise, n, afs)
        evaluate = net.predict(self.form)
        state = y = net.x_T
        added = torch.zeros_like(state)  # by the last step, and kept by its corrector
        spread = None if self.g is None else fresh_weight(noise, t[1:], self.g)
        history: list[Tensor] = []  # newest first
        for i in range(n):
            history.insert(0, evaluate(y, t_c[i]))
            if i > 0 and self.corrector is not None:
                state = keep[i - 1] * state + gain[i - 1] * combine(self.corrector[i - 1], history) + added
            elif i > 0:
                state = y
            y = keep[i] * state + gain[i] * combine(self.b[i], history)
            if spread is not None:
                added = spread[i] * net.fresh(t[i], t[i + 1])
                y = y + added
        return net.tableau(y, t, name, meta)

    def step_weights(self, noise: NoiseSchedule, t: Tensor) -> tuple[Tensor, Tensor]:
        """The weights of `step_weights` for every step on the times t [N+1]; both [N]."""
        return step_weights(noise, t[:-1], t[1:], self.form, self.g)


def step_weights(
    noise: NoiseSchedule, s: Tensor, u: Tensor, form: str, g: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """The two weights of an exponential step from time s to u: that of the state, and that of a constant prediction.
    `g` is as for `Multistep`, in the data form."""
    h = noise.lambda_(u) - noise.lambda_(s)
    if g is not None:
        return noise.sigma(u) / noise.sigma(s) * torch.exp(-g), -noise.alpha(u) * torch.expm1(-h - g)
    if form == "data":
        return noise.sigma(u) / noise.sigma(s), -noise.alpha(u) * torch.expm1(-h)
    if form == "velocity":
        return torch.ones_like(h), u - s
    return noise.alpha(u) / noise.alpha(s), -noise.sigma(u) * torch.expm1(h)


def fresh_weight(noise: NoiseSchedule, u: Tensor, g: Tensor) -> Tensor:
    """The weight of the fresh noise in a step to time u that shrinks the state by e^(-g)."""
    return noise.sigma(u) * (-torch.expm1(-2 * g)).sqrt()


def combine(weights: Sequence[float] | Tensor, history: Sequence[Tensor]) -> Tensor:
    """The weighted sum of the newest entries of a history, as many as there are weights and entries."""
    first, *rest = (weight * entry for weight, entry in zip(weights, history, strict=False))
    return sum(rest, start=first)
