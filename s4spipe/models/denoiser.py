"""What every adapter makes of a pre-trained model: one callable (x, t, condition) -> x0 prediction."""

import torch
from torch import Tensor, nn

from s4spipe.errors import UserError
from s4spipe.noise import NoiseSchedule


class Denoiser(nn.Module):
    """D(x, t, condition). A subclass says how its network is called, in `predict`.

    Under guidance w it is D(nothing) + w (D(condition) - D(nothing)) (Ho and Salimans 2022, arXiv 2207.12598), the two
    evaluated as one batch; w = 1 is the plain conditional model. As x0 is affine in what a network predicts, and the
    weights sum to 1, that is the same as guiding the noise, the velocity or x0 itself.

    Attributes:
        noise_schedule: that of the model's training.
        sample_shape: of one x, without the batch.
        num_classes: how many conditions there are, classes or prompts; 0 for an unconditional model.
        nothing: the condition that stands for none; None where the network was never trained without.
        guidance: w.
        precision: of the network's arithmetic (autocast); x stays what it is.
        in_order: whether samples are to take the conditions in turn, as prompts, rather than at random.
        identity: which model it is: {"kind", "source", "fingerprint"}, as in the solvers learned from it.
    """

    noise_schedule: NoiseSchedule
    sample_shape: tuple[int, ...]
    num_classes = 0
    nothing: int | None = None
    guidance = 1.0
    precision = torch.float32
    in_order = False
    identity: dict | None = None

    def predict(self, x: Tensor, t: Tensor, condition: Tensor | None) -> Tensor:
        """The x0 prediction for x [B, ...] at t [B] under condition [B] (None for an unconditional model)."""
        raise NotImplementedError

    def decode(self, x: Tensor) -> Tensor:
        """Images [B, C, H, W] in [-1, 1] of samples x; a model of pixels has them already."""
        return x

    def forward(self, x: Tensor, t: Tensor, condition: Tensor | None = None) -> Tensor:
        """x [B, ...], t (scalar or [B]), condition: class or prompt indices [B] (or one), or None. Shaped like x."""
        t, guided = t.to(x.dtype).expand(len(x)), self.guided and condition is not None
        condition = self.nothing if condition is None else condition
        if not self.num_classes or condition is None:
            return self._predict(x, t, None)
        condition = torch.as_tensor(condition, device=x.device).expand(len(x))
        if not guided:
            return self._predict(x, t, condition)
        conditions = torch.cat([condition, torch.full_like(condition, self.nothing)])
        both = self._predict(x.repeat(2, *[1] * (x.ndim - 1)), t.repeat(2), conditions)
        conditional, unconditional = both.chunk(2)
        return unconditional + self.guidance * (conditional - unconditional)

    def _predict(self, x: Tensor, t: Tensor, condition: Tensor | None) -> Tensor:
        if self.precision == torch.float32:
            return self.predict(x, t, condition)
        with torch.autocast(x.device.type, self.precision):
            return self.predict(x, t, condition)

    @property
    def guided(self) -> bool:
        """Whether an evaluation is two of the network, one of them without condition."""
        return bool(self.num_classes) and self.guidance != 1.0

    @property
    def network_calls(self) -> int:
        """Evaluations of the network per evaluation of D and per sample."""
        return 2 if self.guided else 1

    def guide(self, guidance: float) -> None:
        """Set w. Raises UserError for a model that cannot be guided."""
        if guidance != 1.0 and self.nothing is None:
            lacks = "was never trained without one" if self.num_classes else "has no conditions"
            raise UserError(f"model.guidance: must be 1 for a model that {lacks}, got {guidance:g}")
        self.guidance = guidance

    def set_precision(self, precision: torch.dtype) -> None:
        """Compute in it from now on."""
        self.precision = precision
