"""A tableau as a diffusers scheduler.

pipe.scheduler = S4SScheduler.from_tableau("solver.json", pipe.scheduler.config)
pipe.scheduler = S4SScheduler.from_classical("unipc_bh2", "logsnr", 8, pipe.scheduler.config)
pipe(..., num_inference_steps=8)
"""

import math
import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor

from s4spipe.models.base import prediction, times, tokens
from s4spipe.models.base.prediction import noise_schedule
from s4spipe.models.noise import Flow, VPDiscrete
from s4spipe.runtime import checks
from s4spipe.runtime.checks import whole
from s4spipe.runtime.errors import UserError, needs, shown
from s4spipe.sampling.tableau import Tableau, project
from s4spipe.scheduler import config as configs
from s4spipe.scheduler import options as given
from s4spipe.scheduler.run import Run
from s4spipe.solvers import registry, timesteps

with needs("diffusers", "s4spipe.scheduler"):
    from diffusers import ConfigMixin, SchedulerMixin
    from diffusers.configuration_utils import register_to_config
    from diffusers.schedulers.scheduling_utils import SchedulerOutput

HUB_ID = re.compile(r"[\w.-]+/[\w.-]+(?<!\.json)")


@dataclass
class S4SSchedulerOutput(SchedulerOutput):
    """The next state `prev_sample` and the x0 prediction `pred_original_sample`, each [B, ...]."""

    pred_original_sample: Tensor | None = None


class _Missing(UserError, AttributeError):
    """What other schedulers have and this one has not; `hasattr` is False for it."""


class S4SScheduler(SchedulerMixin, ConfigMixin):
    """A tableau as a diffusers scheduler.

    The state is float32, or the pipeline's dtype if that is more precise, whatever the network's precision. Sampling
    starts from noise of standard deviation `init_noise_sigma`. For models that diffusers has pipelines for (discrete VP
    noise, flow matching), this is 1, as with other schedulers. For other models (VE noise, such as EDM's), it is
    sigma_T, `timesteps` are the model's own times, and you run the scheduler in a loop of your own.

    Args:
        tableau: a solver, as `Tableau.to_dict()` describes it.
        prediction_type: what the network predicts: epsilon, sample, v_prediction or flow_prediction. By default,
            epsilon (discrete VP noise), the velocity (flow matching) or x0 (all other noise).
        num_train_timesteps: for a flow model, the network's time at t = 1.
        use_flow_sigmas: kept for other schedulers that are made of this config: whether the model is a flow model.
        variance_type: kept for pipelines that ask for it. A learned variance, in a second half of the output's
            channels, is always left out.
        invert_sigmas: whether a flow model's time runs from 0, for noise, to `num_train_timesteps`.
        size: height and width of the images in pixels, for a pipeline that cuts its latents into tokens (Flux's), and a
            solver with weights by frequency.

    Raises:
        UserError: for a tableau that no pipeline can run.
    """

    order = 1
    # Whose keys it keeps, so that a pipeline can be given one of them again.
    _compatibles: ClassVar = list(prediction.CLASSES)

    @register_to_config
    def __init__(
        self,
        *,
        tableau: dict,
        prediction_type: str | None = None,
        num_train_timesteps: int = 1000,
        use_flow_sigmas: bool = False,
        variance_type: str | None = None,
        invert_sigmas: bool = False,
        size: Sequence[int] | None = None,
    ):
        self.tableau = table = Tableau.from_dict(dict(tableau) if isinstance(tableau, Mapping) else tableau)
        flow = isinstance(table.noise, Flow)
        whole("num_train_timesteps", num_train_timesteps)
        tokens.check_size(size)
        self.prediction = prediction.known(prediction_type, table.noise)
        self.init_noise_sigma = 1.0 if isinstance(table.noise, VPDiscrete | Flow) else table.noise.sigma_T
        if self.prediction == "flow_prediction" and not flow:
            raise UserError(f"solver {table.name} is for {configs.name(table)} noise, where no network predicts "
                            f"{prediction_type!r}")  # fmt: skip
        if table.needs(0):
            raise UserError(f"solver {table.name} adds to the noise before the first evaluation, which no pipeline "
                            "does: run it with s4spipe.sample")  # fmt: skip
        scale = float(num_train_timesteps) if flow else 1.0
        self.training = prediction.Training(table.noise, self.prediction, scale, invert_sigmas)
        self.timesteps = times.of_network(self.training, table.t_c)
        self.run = Run(table, self.training.to_x0, size)

    @classmethod
    def from_config(cls, config: Any = None, return_unused_kwargs: bool = False, **options: Any) -> Any:
        """A scheduler from its own config; or, with a `tableau`, from the config of a pipeline's own scheduler, as
        `from_tableau` makes it. Raises UserError for a config without a solver."""
        if "tableau" in options:
            scheduler = cls.from_tableau(Tableau.from_dict(options.pop("tableau")), config)
            return (scheduler, options) if return_unused_kwargs else scheduler
        if not isinstance(config, Mapping) or "tableau" not in config:
            raise UserError("S4SScheduler needs a solver, which this scheduler's config does not have: use "
                            "S4SScheduler.from_tableau('solver.json', pipe.scheduler.config)")  # fmt: skip
        return super().from_config(config, return_unused_kwargs, **options)

    @classmethod
    def from_tableau(
        cls,
        solver: str | Path | Tableau,
        config: dict | None = None,
        *,
        repo: str | None = None,
        rev: str | None = None,
        size: Sequence[int] | None = None,
        nfe: int | None = None,
    ) -> "S4SScheduler":
        """A scheduler that runs a given solver.

        Args:
            solver: a solver's file, a tableau, a folder that `save_pretrained` or `s4spipe export` wrote, or the id of
                such a folder on a model hub.
            config: the config of the pipeline's own scheduler. It says what the network predicts and which noise
                schedule it was trained with. Without a config, the network is taken to predict epsilon (discrete VP
                noise), the velocity (flow matching) or x0 (all other noise).
            repo: the git repository (URL or path) of a DVC project that has the file `solver`.
            rev: the commit or tag of `repo`.
            size: as for the class.
            nfe: the evaluations, needed for a file with several solvers (docs/guide/spanning.md).

        Raises:
            UserError: if `solver` is not a solver, has not `nfe` evaluations, or was made for another noise schedule.
        """
        if repo is not None:
            solver = project.read(str(solver), repo, rev, nfe)
        elif not isinstance(solver, Tableau):
            if not isinstance(solver, str | Path):
                raise UserError(f"solver must be a tableau, or the path of a file or a folder, got {shown(solver)}")
            if Path(solver).is_dir() or (not Path(solver).exists() and HUB_ID.fullmatch(str(solver))):
                saved = _from_folder(cls, str(solver), {} if size is None else {"size": size})
                if config is None:
                    return saved
                solver, size = saved.tableau, saved.config.size
            else:
                solver = Tableau.load(solver, nfe)
        if config is not None and not isinstance(config, Mapping):
            raise UserError(f"config must be a scheduler's config, as pipe.scheduler.config, got {shown(config)}")
        if config is None:
            flow, usual = isinstance(solver.noise, Flow), prediction.known(None, solver.noise)
            return cls(tableau=solver.to_dict(), prediction_type=usual, use_flow_sigmas=flow, size=size)
        model = configs.training(solver, config)
        size = config.get("size") if size is None else size
        own = {key: config[key] for key in ("num_train_timesteps", "variance_type", "invert_sigmas") if key in config}
        own["use_flow_sigmas"] = config.get("use_flow_sigmas", model.flow)
        scheduler = cls(tableau=solver.to_dict(), prediction_type=model.prediction, size=size, **own)
        scheduler.register_to_config(**configs.kept(config, scheduler.config))
        return scheduler

    @classmethod
    def from_classical(cls, solver: str, schedule: timesteps.Schedule, nfe: int, config: dict) -> "S4SScheduler":
        """A scheduler that runs a classical solver.

        Args:
            solver: the solver's name.
            schedule: a schedule, as for `timesteps.build`.
            nfe: evaluations.
            config: the config of the pipeline's own scheduler.

        Raises:
            UserError: for an unknown name, or an NFE that the solver cannot have.
        """
        return cls.from_tableau(registry.make(solver, schedule, noise_schedule(config), nfe), config)

    def set_timesteps(
        self,
        num_inference_steps: int | None = None,
        device: torch.device | str | None = None,
        timesteps: list | None = None,
        sigmas: list | None = None,
        mu: float | None = None,
        **options: Any,
    ) -> None:
        """Reset the scheduler for a new batch.

        Args:
            num_inference_steps: the solver's NFE.
            device: where to put the timesteps.
            timesteps, sigmas: ignored, if as many as the solver's NFE: the solver has its own times. Many pipelines of
                flow models always give some.
            mu: by how much some pipelines shift a flow model's times. Ignored, unless they give both sigmas and
                timesteps: then they show their networks the times before the shift.
            options: what other schedulers take; none is taken here.

        Raises:
            UserError: for another number of steps than the solver's NFE, for times that do not go with the sigmas, and
                in a pipeline that runs other schedulers only (see `options.check_pipeline`): it is who calls this.
        """
        nfe, asked = self.tableau.nfe, None
        given.check_pipeline(sys._getframe(1).f_locals.get("self"), self.timesteps, self.tableau.name)
        if "original_inference_steps" in options:
            raise UserError("pipelines of latent consistency models decode the network's last x0 prediction and not "
                            "the solver's sample: use StableDiffusionPipeline(**pipe.components)")  # fmt: skip
        for key in options:
            raise UserError(f"solver {self.tableau.name} has its own times and does not know {shown(key)}, which this "
                            "pipeline gives its scheduler")  # fmt: skip
        for what, some in (("timesteps", timesteps), ("sigmas", sigmas)):
            if some is not None and (not hasattr(some, "__len__") or len(some) != nfe):
                asked = f"{len(some)} {what}" if hasattr(some, "__len__") else f"{what}={shown(some)}"
        if (
            asked is None
            and num_inference_steps is not None
            and whole("num_inference_steps", num_inference_steps) != nfe
        ):
            asked = f"num_inference_steps={shown(num_inference_steps)}"
        if asked:
            raise UserError(
                f"solver {self.tableau.name} makes {nfe} evaluations at its own times: call the pipeline with "
                f"num_inference_steps={nfe}, got {asked}"
            )
        t = self.tableau.t_c
        if timesteps is not None and sigmas is not None:
            t = times.unshifted(t, self.config, mu)
        self.timesteps = times.of_network(self.training, t).to(
            None if device is None else checks.device("device", device)
        )
        self.num_inference_steps = nfe
        self.run.restart()

    @property
    def nfe(self) -> int:
        """The evaluations per sample, which `num_inference_steps` must equal."""
        return self.tableau.nfe

    @property
    def sigmas(self) -> Tensor:
        """[N+1]: sigma / alpha, or a flow model's t, of every evaluation and of the end; some pipelines read them."""
        t, noise = torch.cat([self.tableau.t_c, self.tableau.t[-1:]]), self.tableau.noise
        if isinstance(noise, Flow):
            return (1 - t if self.config.invert_sigmas else t).float()
        return (noise.sigma(t) / noise.alpha(t)).float()

    @property
    def step_index(self) -> int:
        """The number of the next step, from 0."""
        return self.run.made

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            if name.startswith("_"):
                raise
            raise _Missing(f"S4SScheduler has no {name!r}, which this pipeline asks its scheduler for: run the solver "
                           "in another pipeline, or with s4spipe.sample") from None  # fmt: skip

    def set_begin_index(self, begin_index: int = 0) -> None:
        """Start at this step, as image-to-image does with a strength below 1: from an image with the noise of the step.

        Raises UserError for a solver that cannot (see `Run.begin_at`).
        """
        self.run.begin_at(whole("begin_index", begin_index, 0, self.tableau.nfe - 1))

    def add_noise(self, original_samples: Tensor, noise: Tensor, timesteps: Any) -> Tensor:
        """Images x_0 with the noise of one of the times: alpha x_0 + sigma noise. It is noise alone at the first time
        of a flow model, which stands for 1. Before the first step, sampling then starts there.

        Raises UserError for another time, or for a solver that cannot start there (see `Run.begin_at`).
        """
        i, model = times.place(self.timesteps, timesteps), self.tableau.noise
        if i is None:
            raise UserError(f"solver {self.tableau.name} has its own times, {shown(self.timesteps.tolist())}, and was "
                            f"asked to noise images for {shown(timesteps)}: use another scheduler")  # fmt: skip
        if not self.run.begun:
            self.run.begin_at(i)
        if i == 0 and isinstance(model, Flow):
            return noise
        t = self.tableau.t_c[i] if i else self.tableau.t[0]
        return float(model.alpha(t)) * original_samples + float(model.sigma(t)) * noise

    def scale_noise(self, sample: Tensor, timestep: Any, noise: Tensor) -> Tensor:
        """As `add_noise`, which pipelines of flow models call so."""
        return self.add_noise(sample, noise, timestep)

    def scale_model_input(self, sample: Tensor, timestep: Tensor | float | None = None) -> Tensor:
        """What the network is shown: before the first evaluation y_0, for noises x_T; later the state itself."""
        return self.run.shown(sample)

    def step(
        self,
        model_output: Tensor,
        timestep: Tensor | float,
        sample: Tensor,
        generator: torch.Generator | None = None,
        return_dict: bool = True,
        eta: float = 0.0,
        **options: Any,
    ) -> S4SSchedulerOutput | tuple[Tensor, Tensor]:
        """Make one step of the solver.

        Args:
            model_output: the network's output at `sample` [B, ...].
            timestep: the current entry of `timesteps`.
            sample: the current state [B, ...].
            generator: draws the fresh noises of a solver that adds some; others ignore it.
            return_dict: whether to return an S4SSchedulerOutput rather than a tuple.
            eta: must be 0: a tableau has its own noise, if any.
            options: those of other schedulers' steps that change nothing here (see `options.OPTIONS`).

        Returns:
            The next state and the x0 prediction, in an S4SSchedulerOutput or a tuple.

        Raises:
            UserError: if a step was left out, `sample` is not the result of the previous step, or the network's output
                is no tensor, is not finite or has another shape than `sample`.
        """
        i, time = self.run.made, given.number(timestep)
        given.check(options | {"eta": eta}, time, self.tableau.name)
        if i == self.tableau.nfe or not math.isclose(time, self.timesteps[i], rel_tol=1e-3, abs_tol=1e-6):
            got = shown(timestep) if math.isnan(time) else f"{time:g}"
            raise UserError(f"solver {self.tableau.name} takes its {self.tableau.nfe} steps in turn: got timestep "
                            f"{got} as number {i + 1}; call set_timesteps to start anew")  # fmt: skip
        previous, x0 = self.run.step(model_output, sample, generator)
        return S4SSchedulerOutput(previous, x0) if return_dict else (previous, x0)

    def __len__(self) -> int:
        return self.config.num_train_timesteps


def _from_folder(cls: type[S4SScheduler], folder: str, options: dict) -> S4SScheduler:
    try:
        return cls.from_pretrained(folder, **options)
    except OSError as error:
        reason = str(error).strip().splitlines() or [type(error).__name__]
        raise UserError(f"{folder}: neither a file, nor a folder or a hub's id of a scheduler ({reason[0]})") from None
