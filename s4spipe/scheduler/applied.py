"""A solver put into a diffusers pipeline: its scheduler, and what scales the noises of a solver with c_0 != 1."""

import inspect
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from s4spipe.models.diffusers.through import NETWORKS
from s4spipe.runtime.errors import UserError, shown
from s4spipe.sampling.tableau import Tableau
from s4spipe.scheduler import S4SScheduler, options
from s4spipe.scheduler.run import image_axes

# Of pipelines that run other pipelines, each with its own scheduler.
PARTS = ("prior_pipe", "decoder_pipe", "generation_pipe", "upsampling_pipe")


class Applied:
    """A solver in a pipeline, until `undo`; a block `with s4spipe.apply(...)` ends so.

    Attributes:
        pipe: the pipeline.
        scheduler: its scheduler now, an S4SScheduler.
        nfe: the evaluations per sample, which `num_inference_steps` must equal.
    """

    def __init__(self, pipe: Any, scheduler: S4SScheduler):
        self.pipe, self.scheduler, self.nfe = pipe, scheduler, scheduler.nfe
        self._before, self._hooks = pipe.scheduler, []  # type: Any, list[Any]
        pipe.scheduler = scheduler
        if hasattr(pipe, "prepare_latents"):
            pipe.prepare_latents = self._preparing(pipe.prepare_latents)
        else:
            networks = [getattr(pipe, name) for name in NETWORKS if getattr(pipe, name, None) is not None]
            self._hooks = [net.register_forward_pre_hook(self._shown, with_kwargs=True) for net in networks]
        pipe.__dict__["_s4spipe"] = self

    def undo(self) -> None:
        """Give the pipeline its own scheduler back, and leave its latents alone."""
        if self.pipe.__dict__.get("_s4spipe") is not self:
            return
        del self.pipe.__dict__["_s4spipe"]
        self.pipe.__dict__.pop("prepare_latents", None)
        for hook in self._hooks:
            hook.remove()
        if self._runs():
            self.pipe.scheduler = self._before

    def __enter__(self) -> "Applied":
        return self

    def __exit__(self, *_error: object) -> None:
        self.undo()

    def _runs(self) -> bool:
        """Whether the pipeline still has this scheduler; it may have been given another since."""
        return self.pipe.scheduler is self.scheduler

    def _preparing(self, own: Callable) -> Callable:
        """The pipeline's own `prepare_latents`, with y_0 for its noises. It returns them alone, or first of several."""
        signature = inspect.signature(own)

        def prepare_latents(*args: Any, **kwargs: Any) -> Any:
            made = own(*args, **kwargs)
            if not self._runs():
                return made
            given = signature.bind(*args, **kwargs).arguments
            needed = image_axes(self.scheduler.tableau) >= 2  # to know how tokens lie
            if needed and {"height", "width"} <= given.keys() and self.scheduler.config.size is None:
                self.scheduler.run.size = (given["height"], given["width"])
            if isinstance(made, Tensor):
                return self.scheduler.run.prepare(made)
            if isinstance(made, tuple | list) and made and isinstance(made[0], Tensor):
                return type(made)([self.scheduler.run.prepare(made[0]), *made[1:]])
            return made

        return prepare_latents

    def _shown(self, _network: Any, args: tuple, kwargs: dict[str, Any]) -> tuple[tuple, dict[str, Any]] | None:
        """What a network is shown in a pipeline that hands it its noises without asking its scheduler."""
        if not self._runs():
            return None
        if args:
            return (self.scheduler.run.shown(args[0]), *args[1:]), kwargs
        key = next((key for key in ("sample", "hidden_states") if key in kwargs), None)
        return None if key is None else (args, kwargs | {key: self.scheduler.run.shown(kwargs[key])})


def apply(
    pipe: Any,
    solver: str | Path | Tableau | None = None,
    *,
    repo: str | None = None,
    rev: str | None = None,
    size: Sequence[int] | None = None,
    nfe: int | None = None,
) -> Applied:
    """Put a solver into a pipeline: any solver, also one that scales its noises (c_0 != 1), as `free` does.

        s4spipe.apply(pipe, "solver.json")
        pipe(prompt, num_inference_steps=5)

    It sets the scheduler and takes hold of the pipeline's `prepare_latents`, so that what is prepared is y_0 = c_0 x_T.
    `undo` gives the pipeline back as it was. A solver that is in the pipeline already is taken out first.

    Args:
        pipe: a pipeline of diffusers.
        solver, repo, rev, size, nfe: as for `S4SScheduler.from_tableau`. Without a solver, it is that of an
            S4SScheduler that the pipeline has. The size is that of the call where the pipeline is given height and
            width.

    Returns:
        The solver in the pipeline, which can be undone.

    Raises:
        UserError: if `pipe` is no pipeline with a scheduler, or one that runs other pipelines or other schedulers only;
            and as `S4SScheduler.from_tableau` does.
    """
    if not hasattr(pipe, "scheduler") or not hasattr(pipe, "register_modules"):
        raise UserError(f"s4spipe.apply needs a pipeline of diffusers that has a scheduler, got {shown(type(pipe))}")
    parts = [part for part in PARTS if getattr(pipe, part, None) is not None]
    if parts:
        raise UserError(f"{type(pipe).__name__} runs other pipelines, each with its own scheduler: give the solver to "
                        f"its {' or its '.join(parts)}")  # fmt: skip
    before = pipe.__dict__.get("_s4spipe")
    own = before._before if before is not None and before._runs() else pipe.scheduler
    if solver is None:
        if not isinstance(pipe.scheduler, S4SScheduler):
            raise UserError("s4spipe.apply needs a solver, as this pipeline's scheduler is none of s4spipe: "
                            "s4spipe.apply(pipe, 'solver.json')")  # fmt: skip
        solver = pipe.scheduler.tableau
    scheduler = S4SScheduler.from_tableau(solver, own.config, repo=repo, rev=rev, size=size, nfe=nfe)
    options.check_pipeline(pipe, scheduler.timesteps, scheduler.tableau.name)
    if before is not None:
        before.undo()
    return Applied(pipe, scheduler)
