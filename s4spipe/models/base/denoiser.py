"""The common interface of all models: a callable (x, t, condition) -> x0 prediction."""

from collections.abc import Sequence
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn

from s4spipe.models.noise import NoiseSchedule
from s4spipe.runtime.errors import UserError, shown

DECODED = 2**18  # numbers of latents that are decoded at a time: four images of 1024 pixels in Stable Diffusion XL


def few(x: Tensor) -> Sequence[Tensor]:
    """Latents [B, ...] in parts that are decoded at a time: an autoencoder takes more memory than the network does."""
    return x.split(max(1, DECODED // max(1, x[:1].numel())))


class Denoiser(nn.Module):
    """D(x, t, condition) -> x0 prediction. A subclass implements `predict`.

    With guidance scale w, it is D(null) + w (D(condition) - D(null)) (Ho and Salimans 2022, arXiv 2207.12598). Both
    terms are evaluated in one batch; w = 1 is the plain conditional model. Since x0 is affine in the network's
    prediction and the weights sum to 1, this is the same as guiding the noise, the velocity or x0.

    Attributes:
        net: the network.
        noise_schedule: the noise schedule that the model was trained with.
        sample_shape: the shape of one x, without the batch.
        num_classes: the number of conditions (classes or prompts); 0 for an unconditional model.
        null_condition: the index that stands for no condition; None if the network was never trained without one.
        guidance: the guidance scale w.
        precision: the dtype of the network's arithmetic (autocast); x keeps its dtype.
        conditional: whether samples are drawn with conditions (`model.condition` is not none).
        in_order: whether samples take the conditions in turn (prompts) rather than at random.
        frequencies: whether the axes of a sample after its first are those of an image, a video or a sound.
        identity: which model this is: {"kind", "source", "fingerprint"}, as recorded in the solvers learned for it.
    """

    net: Any
    noise_schedule: NoiseSchedule
    sample_shape: tuple[int, ...]
    num_classes: int = 0
    null_condition: int | None = None
    guidance: float = 1.0
    precision = torch.float32
    conditional = True
    in_order = False
    frequencies = True
    identity: dict | None = None

    @property
    def device(self) -> torch.device:
        """The device of the network's weights."""
        return next(chain(self.parameters(), self.buffers()), torch.empty(0)).device

    def predict(self, x: Tensor, t: Tensor, condition: Tensor | None) -> Tensor:
        """The x0 prediction, without guidance.

        Args:
            x: states [B, ...].
            t: times [B] of the noise schedule.
            condition: indices [B]; None for an unconditional model.

        Returns:
            x0 predictions [B, ...].
        """
        raise NotImplementedError

    def decode(self, x: Tensor) -> Tensor:
        """Turn samples x into images [B, C, H, W] in [-1, 1]. A pixel-space model returns x itself."""
        return x

    def forward(self, x: Tensor, t: Tensor, condition: Tensor | None = None) -> Tensor:
        """The x0 prediction, with guidance.

        Args:
            x: states [B, ...].
            t: times of the noise schedule, a scalar or [B].
            condition: class or prompt indices [B], a single index, or None for no condition.

        Returns:
            x0 predictions [B, ...].

        Raises:
            UserError: for conditions that are no indices, or not one for each state. Whether the model has them is
                checked in `checked`.
        """
        t, guided = t.to(x.dtype).expand(len(x)), self.guided and condition is not None
        given = self.null_condition if condition is None else condition
        if not self.num_classes or given is None:
            return self._predict(x, t, None)
        index = self._indices(given, x)
        if not guided or self.null_condition is None:
            return self._predict(x, t, index)
        conditions = torch.cat([index, torch.full_like(index, self.null_condition)])
        both = self._predict(x.repeat(2, *[1] * (x.ndim - 1)), t.repeat(2), conditions)
        conditional, unconditional = both.chunk(2)
        return unconditional + self.guidance * (conditional - unconditional)

    def checked(self, x: Tensor, condition: Any) -> Tensor | None:
        """Conditions [B] as `forward` takes them, for states x; a list or a single index is taken too.

        It is for conditions that come from outside, before the first evaluation: on a GPU, it waits for them.

        Raises:
            UserError: for states of other dimensions or channels than the model's, and for conditions that it lacks.
        """
        own = self.sample_shape
        if x.ndim != 1 + len(own) or x.shape[1] != own[0]:  # many networks take other sizes than their own
            raise UserError(f"this model's samples are of shape {list(own)}: the noises must be "
                            f"[B, {', '.join(map(str, own))}], got {list(x.shape)}")  # fmt: skip
        if condition is None:
            return None
        if not self.num_classes:
            raise UserError(f"this model has no conditions: leave the condition out, got {shown(condition)}")
        index, last = self._indices(condition, x), max(self.num_classes - 1, self.null_condition or 0)
        if not x.is_meta and not ((index >= 0) & (index <= last)).all():
            raise UserError(f"this model's conditions are indices from 0 to {last}, got {shown(condition)}")
        return index

    def _indices(self, condition: Any, x: Tensor) -> Tensor:
        """Conditions as indices [B]. Raises UserError for what is no index, or not one for each row of x [B, ...]."""
        try:
            index = torch.as_tensor(condition, device=x.device)
        except (TypeError, ValueError, RuntimeError, OverflowError):
            index = torch.empty(0)
        broken = index.is_floating_point() or index.is_complex() or index.dtype == torch.bool
        if broken or list(index.shape) not in ([], [1], [len(x)]):
            raise UserError(f"conditions must be whole numbers [{len(x)}], one for each sample, or a single one, got "
                            f"{shown(condition)}")  # fmt: skip
        return index.long().expand(len(x))

    def _predict(self, x: Tensor, t: Tensor, condition: Tensor | None) -> Tensor:
        device, half = x.device.type, self.precision != torch.float32
        if not half and not (torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device)):
            return self.predict(x, t, condition)
        with torch.autocast(device, self.precision, enabled=half):  # whatever the caller's own autocast says
            return self.predict(x, t, condition)

    @property
    def guided(self) -> bool:
        """Whether an evaluation takes two of the network, one of them without the condition."""
        return bool(self.num_classes) and self.guidance != 1.0

    @property
    def network_calls(self) -> int:
        """Network evaluations per evaluation of D and per sample: 2 under guidance, else 1."""
        return 2 if self.guided else 1

    def guide(self, guidance: float) -> None:
        """Set the guidance scale w.

        Raises:
            UserError: for a model that cannot be guided.
        """
        if guidance != 1.0 and self.null_condition is None:
            lacks = "was never trained without one" if self.num_classes else "has no conditions"
            raise UserError(f"model.guidance: must be 1 for a model that {lacks}, got {guidance:g}")
        self.guidance = guidance

    def set_precision(self, precision: torch.dtype) -> None:
        """Set the dtype of the network's arithmetic."""
        self.precision = precision
