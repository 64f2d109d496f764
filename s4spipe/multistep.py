"""From per-step coefficients to a tableau: linear multistep methods, with or without a corrector."""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from s4spipe.noise import NoiseSchedule
from s4spipe.tableau import Tableau


@dataclass(frozen=True, eq=False)
class Multistep:
    """Coefficients of a multistep method of history length k over N steps (S4S, Frankel et al. 2025, App. B).

    With h_i = lambda_i - lambda_{i-1}, step i = 1 .. N makes

        data:   x_i = (sigma_i/sigma_{i-1}) x_{i-1} - alpha_i expm1(-h_i) sum_j b[i-1, j] d_{i-1-j}
        noise:  x_i = (alpha_i/alpha_{i-1}) x_{i-1} - sigma_i expm1(h_i)  sum_j b[i-1, j] eps_{i-1-j}

    Attributes:
        form: which of the two.
        b: [N, k], newest evaluation first; entries that reach before the first evaluation are not used.
        corrector: None, or [N-1, k+1]: once the network has been evaluated at the predicted x_i, the state x_i is made
            again from x_{i-1} by the same formula with these weights, the first of them for the new evaluation. The
            evaluation itself is kept, so a corrector costs none (UniC of UniPC, Zhao et al. 2023); the last step has
            no corrector.
    """

    form: Literal["data", "noise"]
    b: Tensor
    corrector: Tensor | None = None

    def tableau(
        self, noise: NoiseSchedule, t: Tensor, name: str, meta: dict | None = None, t_c: Tensor | None = None
    ) -> Tableau:
        """The table of this method on the times `t` [N+1], by running it on unit vectors.

        Every quantity is held as its weights over (x_T, d_0, .., d_{N-1}). `t_c` [N] are the times shown to the network
        (default: t without the last); alpha, sigma and h are those of `t`.
        """
        n = len(t) - 1
        t_c = t[:-1] if t_c is None else t_c
        keep, gain = self.step_weights(noise, t)
        alpha_c, sigma_c = noise.alpha(t_c), noise.sigma(t_c)

        unit = torch.eye(n + 1, dtype=t.dtype, device=t.device)
        state = y = unit[0]
        history: list[Tensor] = []  # newest first
        rows = []
        for i in range(n):
            d = unit[i + 1]
            history.insert(0, d if self.form == "data" else (y - alpha_c[i] * d) / sigma_c[i])
            if i > 0 and self.corrector is not None:
                state = keep[i - 1] * state + gain[i - 1] * _combine(self.corrector[i - 1], history)
            elif i > 0:
                state = y
            y = keep[i] * state + gain[i] * _combine(self.b[i], history)
            rows.append(y)
        table = torch.stack(rows)
        return Tableau(t, t_c, table[:, 0], table[:, 1:], noise, name, meta or {})

    def step_weights(self, noise: NoiseSchedule, t: Tensor) -> tuple[Tensor, Tensor]:
        """What each step on the times t [N+1] keeps of the state, and the weight of its history's sum; both [N]."""
        alpha, sigma, h = noise.alpha(t), noise.sigma(t), noise.lambda_(t).diff()
        if self.form == "data":
            return sigma[1:] / sigma[:-1], -alpha[1:] * torch.expm1(-h)
        return alpha[1:] / alpha[:-1], -sigma[1:] * torch.expm1(h)


def _combine(weights: Tensor, history: list[Tensor]) -> Tensor:
    used = history[: len(weights)]
    return sum(weight * entry for weight, entry in zip(weights[: len(used)], used, strict=True))
