"""A solver's run through the steps of a pipeline: its states and evaluations so far."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from s4spipe.models.base import tokens
from s4spipe.runtime.errors import UserError, needs, shown
from s4spipe.sampling.loop import check_finite
from s4spipe.sampling.tableau import Tableau
from s4spipe.scheduler.first_state import FirstState

with needs("diffusers", "s4spipe.scheduler"):
    from diffusers.utils.torch_utils import randn_tensor


class Run:
    """The states of a solver, step by step, in float32 or in the pipeline's dtype if that is more precise.

    Args:
        table: the solver.
        to_x0: the x0 prediction from a network's output (see `prediction.X0`).
        size: height and width of the images in pixels, for samples in tokens (see `tokens.grid`).

    Attributes:
        first: what was made of which noises.
    """

    def __init__(self, table: Tableau, to_x0: Callable, size: Any):
        self.table, self.to_x0, self.size = table, to_x0, size
        self.alpha, self.sigma = table.noise.alpha(table.t_c).tolist(), table.noise.sigma(table.t_c).tolist()
        self.first = FirstState(table)
        self.restart()

    @property
    def made(self) -> int:
        """The evaluations so far, with those that were left out by starting in the middle."""
        return len(self._evaluations) or self._begin_at

    @property
    def begun(self) -> bool:
        """Whether a step was made."""
        return bool(self._evaluations)

    def restart(self) -> None:
        """Begin a new batch. The noises of it may have been scaled already: pipelines do this in any order."""
        self._begin_at = 0
        self._evaluations: list[Tensor] = []
        self._fresh: list[Tensor] = []
        self._state: Any = None
        self._dtype: torch.dtype | None = None  # of the state as the pipeline was given it

    def begin_at(self, k: int) -> None:
        """Start at evaluation k, from a state at its time.

        The predictions that were not made are then taken to be the first that is made, and x_T to be the noise that
        leads to the state with them. So a single-step method goes on as if it had come here, and a multistep method
        begins with first order.

        Raises UserError for a learned solver, which was learned for whole runs, and for one that adds noise.
        """
        if k and "family" in self.table.meta:
            raise UserError(f"solver {self.table.name} was learned for whole runs: it cannot start in the middle, as "
                            "image-to-image with a strength below 1 needs; use a classical solver there "
                            "(S4SScheduler.from_classical)")  # fmt: skip
        if k and (self.table.draws or (self.table.c[k - 1] == 0).any()):
            raise UserError(f"solver {self.table.name} cannot start in the middle, as image-to-image with a strength "
                            "below 1 needs; use another one there")  # fmt: skip
        self._begin_at = k

    def shown(self, x: Tensor) -> Tensor:
        """What the network is shown for what a pipeline holds: y_0 for noises x_T, later the state itself."""
        first = self.first
        if self.made or not first.needed or first.prepared or first.is_made(x):
            return x
        return first.keep(x, self._first_state(x))

    def prepare(self, noises: Tensor) -> Tensor:
        """y_0 of noises x_T [B, ...], for a pipeline that hands them to its network as they are."""
        if self._begin_at or not self.first.needed:
            return noises
        made = self.first.keep(noises, self._first_state(noises))
        self.first.prepared = True
        return made

    def step(self, output: Tensor, sample: Tensor, generator: Any = None) -> tuple[Tensor, Tensor]:
        """The next state and the x0 prediction [B, ...], in the dtype of the sample.

        Args:
            output: the network's output [B, ...], or [B, 2 C, ...] with a learned variance, which is left out.
            sample: what the pipeline holds [B, C, ...].
            generator: draws the fresh noises of a solver that adds some.

        Raises:
            UserError: if `sample` is not the state that the last step gave, or the output is no tensor, is not finite
                or has another shape.
        """
        i, output = self.made, self._checked(output, sample)
        precision = torch.promote_types(sample.dtype, torch.float32)
        with _without_autocast(sample):
            if not self.begun:
                scaled = self.first.needed and i == 0
                x_T = (self.first.noises(sample) if scaled else sample).to(precision, copy=True)  # it may be written to
                self._begin(x_T)
                self._state = self._after(0) if scaled else x_T
            elif not _equal(sample, self._state.to(self._dtype)):
                raise UserError("the sample was changed between two steps, which this solver does not allow: every "
                                "step refers back to the initial noise")  # fmt: skip
            output = output.to(precision, copy=True)  # a captured CUDA graph returns the same memory at every call
            x0 = self.to_x0(self._state, output, self.alpha[i], self.sigma[i])
            d = self._in_basis(x0)
            if self._begin_at:
                self._pretend(d)
            self._evaluations.append(d)
            for _ in range(self.table.needs(i + 1) - len(self._fresh)):
                z = randn_tensor(sample.shape, generator=generator, device=sample.device, dtype=precision)
                self._fresh.append(self._in_basis(z))
            self._state, self._dtype = self._after(i + 1), sample.dtype
            return self._state.to(sample.dtype, copy=True), x0.to(sample.dtype, copy=True)

    def _checked(self, output: Tensor, sample: Tensor) -> Tensor:
        """The network's output, without a learned variance, if it is finite and has the shape of the sample."""
        for what, value in (("the sample", sample), ("the network's output", output)):
            if not isinstance(value, Tensor) or not value.is_floating_point() or value.ndim < 2:
                raise UserError(f"{what} must be a tensor [B, C, ...] of floating-point numbers, got {shown(value)}")
        channels = sample.shape[1]
        if output.shape == (len(sample), 2 * channels, *sample.shape[2:]):
            output = output[:, :channels]
        if output.shape != sample.shape:
            raise UserError(f"the network's output has shape {list(output.shape)}, but the sample has "
                            f"{list(sample.shape)}; this scheduler needs the same")  # fmt: skip
        check_finite(output, self.made, self.table)
        return output

    def _first_state(self, noises: Tensor) -> Tensor:
        with _without_autocast(noises):
            self._begin(noises.to(torch.promote_types(noises.dtype, torch.float32)))
            return self._after(0).to(noises.dtype)

    def _begin(self, x_T: Tensor) -> None:
        self._grid = tokens.grid(x_T, self.size, image_axes(self.table))
        self.table.basis.check(image := self._grid.image(x_T))
        self._x_T, self._m = self.table.basis.to(image), self.table.constant(image)

    def _after(self, i: int) -> Tensor:
        """y_i, laid out as the pipeline's samples are."""
        state = self.table.state(i, self._x_T, self._evaluations, self._m, self._fresh)
        return self._grid.tokens(self.table.basis.back(state))

    def _pretend(self, d: Tensor) -> None:
        """Take d for all predictions so far, and what leads to the state with them for x_T (see `begin_at`)."""
        k, y = self._begin_at, self._in_basis(self._state)
        self._evaluations = [d] * k
        others = self.table.state(k, torch.zeros_like(y), self._evaluations, self._m)
        self._x_T = (y - others) / self.table.basis.spread(self.table.c[k - 1].to(y), y)
        self._begin_at = 0  # the next batch may be prepared before `restart`

    def _in_basis(self, x: Tensor) -> Tensor:
        return self.table.basis.to(self._grid.image(x))


def image_axes(table: Tableau) -> int:
    """Over how many axes of an image a solver has weights by frequency, or a constant; 0 if it has neither."""
    return max(table.basis.axes, 0 if table.m is None else table.m.ndim - 1)


def _equal(sample: Tensor, state: Tensor) -> bool:
    """Whether they are the same, but for a change of dtype by the pipeline."""
    return sample.shape == state.shape and torch.equal(sample, state.to(sample.dtype))


def _without_autocast(x: Tensor) -> torch.autocast:
    """A block in which the solver's arithmetic keeps its precision, whatever the pipeline's autocast says."""
    return torch.autocast(x.device.type, enabled=False)
