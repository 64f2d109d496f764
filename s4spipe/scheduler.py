"""Any solver of this project in a diffusers pipeline.

pipe.scheduler = S4SScheduler.from_tableau("solver.json", pipe.scheduler.config)
pipe.scheduler = S4SScheduler.from_classical("unipc_bh2", "logsnr", 8, pipe.scheduler.config)
pipe(..., num_inference_steps=8)
"""

import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, cast

import torch
from torch import Tensor

from s4spipe.models import noise
from s4spipe.models.base import prediction
from s4spipe.models.base.prediction import X0, noise_schedule
from s4spipe.models.noise import Flow, VPDiscrete
from s4spipe.runtime import checks
from s4spipe.runtime.checks import whole
from s4spipe.runtime.errors import UserError, needs, shown
from s4spipe.sampling import tokens
from s4spipe.sampling.loop import check_finite
from s4spipe.sampling.tableau import Tableau, project
from s4spipe.solvers import registry, timesteps

with needs("diffusers", "s4spipe.scheduler"):
    from diffusers import ConfigMixin, SchedulerMixin
    from diffusers.configuration_utils import register_to_config
    from diffusers.schedulers.scheduling_utils import SchedulerOutput
    from diffusers.utils.torch_utils import randn_tensor

HUB_ID = re.compile(r"[\w.-]+/[\w.-]+(?<!\.json)")


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
        use_flow_sigmas: tells Flux's pipeline to leave the times to the scheduler.
        variance_type: if it begins with `learned`, the network's output has a variance in a second half of its
            channels, which is left out.
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
        use_flow_sigmas: bool = True,
        variance_type: str | None = None,
        size: Sequence[int] | None = None,
    ):
        self.tableau = table = Tableau.from_dict(dict(tableau) if isinstance(tableau, Mapping) else tableau)
        flow = isinstance(table.noise, Flow)
        whole("num_train_timesteps", num_train_timesteps)
        tokens.check_size(size)
        self.prediction = prediction.known(prediction_type, table.noise)
        self.init_noise_sigma = 1.0 if isinstance(table.noise, VPDiscrete | Flow) else table.noise.sigma_T
        if self.prediction == "flow_prediction" and not flow:
            raise UserError(f"solver {table.name} is for {_name(table)} noise, where no network predicts "
                            f"{prediction_type!r}")  # fmt: skip
        if (table.c_0 != 1).any():
            raise UserError(f"solver {table.name} makes its first step without the network (AFS), which no pipeline "
                            "does: run it with s4spipe.sample")  # fmt: skip
        if any(getattr(table, key)[0].any() for key in table.extras if key != "m"):
            raise UserError(f"solver {table.name} adds to the noise before the first evaluation, which no pipeline "
                            "does: run it with s4spipe.sample")  # fmt: skip
        self.alpha, self.sigma = table.noise.alpha(table.t_c).tolist(), table.noise.sigma(table.t_c).tolist()
        self.timesteps = self._times()
        self._restart()

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

        Raises:
            UserError: if `solver` is not a solver, or was made for another noise schedule.
        """
        if repo is not None:
            solver = project.read(str(solver), repo, rev)
        elif not isinstance(solver, Tableau):
            if not isinstance(solver, str | Path):
                raise UserError(f"solver must be a tableau, or the path of a file or a folder, got {shown(solver)}")
            if Path(solver).is_dir() or (not Path(solver).exists() and HUB_ID.fullmatch(str(solver))):
                saved = _from_folder(cls, str(solver), {} if size is None else {"size": size})
                if config is None:
                    return saved
                solver, size = saved.tableau, saved.config.size
            else:
                solver = Tableau.load(solver)
        if config is not None and not isinstance(config, Mapping):
            raise UserError(f"config must be a scheduler's config, as pipe.scheduler.config, got {shown(config)}")
        if config is None:
            return cls(tableau=solver.to_dict(), prediction_type=prediction.known(None, solver.noise), size=size)
        if not isinstance(solver.noise, VPDiscrete | Flow):
            raise UserError(
                f"solver {solver.name} is for {_name(solver)} noise, which diffusers' pipelines do not have: run it "
                "with s4spipe.sample, or leave the config out and run a loop of your own"
            )
        model = prediction.read(config)
        if model.flow != isinstance(solver.noise, Flow):
            raise UserError(f"solver {solver.name} is for {_name(solver)} noise, the pipeline's model for "
                            f"{'flow' if model.flow else 'vp_discrete'}")  # fmt: skip
        if isinstance(solver.noise, VPDiscrete):
            theirs, ours = (torch.tensor(n.alphas_cumprod) for n in (cast(VPDiscrete, model.noise), solver.noise))
            if len(theirs) != len(ours) or not torch.allclose(theirs, ours, rtol=1e-4, atol=1e-7):
                raise UserError(f"solver {solver.name} was made for another model: its alphas_cumprod are not those of "
                                "the pipeline's scheduler")  # fmt: skip
        own = {key: config[key] for key in ("num_train_timesteps", "variance_type") if key in config}
        scheduler = cls(tableau=solver.to_dict(), prediction_type=model.prediction, size=size, **own)
        # The pipeline's own keys (betas, shift, ...) are kept: OtherScheduler.from_config(pipe.scheduler.config) finds
        # the model's noise in them, and pipelines ask for some. So is which of them are defaults of their class.
        kept = {key: value for key, value in config.items() if key not in scheduler.config and key[:1] != "_"}
        defaults = [key for key in config.get("_use_default_values", ()) if key in kept]
        defaults += scheduler.config["_use_default_values"]
        scheduler.register_to_config(**kept, _use_default_values=defaults)
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
        original_inference_steps: int | None = None,
    ) -> None:
        """Reset the scheduler for a new batch.

        Args:
            num_inference_steps: the solver's NFE.
            device: where to put the timesteps.
            timesteps: must be None: the solver has its own times.
            sigmas: ignored, if as many as the solver's NFE. Some pipelines of flow models always give some.
            mu: ignored. Some pipelines shift a flow model's times by it.
            original_inference_steps: ignored. Pipelines of latent consistency models give it.

        Raises:
            UserError: for another number of steps than the solver's NFE, and for custom timesteps.
        """
        nfe, asked = self.tableau.nfe, None
        if timesteps is not None:
            asked = "timesteps"
        elif sigmas is not None and len(sigmas) != nfe:
            asked = f"{len(sigmas)} sigmas"
        elif num_inference_steps is not None and whole("num_inference_steps", num_inference_steps) != nfe:
            asked = f"num_inference_steps={shown(num_inference_steps)}"
        if asked:
            raise UserError(
                f"solver {self.tableau.name} makes {nfe} evaluations at its own times: call the pipeline with "
                f"num_inference_steps={nfe}, got {asked}"
            )
        self.timesteps = self._times().to(None if device is None else checks.device("device", device))
        self.num_inference_steps = nfe
        self._restart()

    @property
    def nfe(self) -> int:
        """The evaluations per sample, which `num_inference_steps` must equal."""
        return self.tableau.nfe

    @property
    def sigmas(self) -> Tensor:
        """[N+1]: sigma / alpha, or a flow model's t, of every evaluation and of the end; some pipelines read them."""
        t, noise = torch.cat([self.tableau.t_c, self.tableau.t[-1:]]), self.tableau.noise
        return (t if isinstance(noise, Flow) else noise.sigma(t) / noise.alpha(t)).float()

    def _times(self) -> Tensor:
        scale = self.config.num_train_timesteps if isinstance(self.tableau.noise, Flow) else 1
        return (scale * self.tableau.t_c).float()

    def _restart(self) -> None:
        self._evaluations: list[Tensor] = []
        self._fresh: list[Tensor] = []
        self._x_T: Any = None
        self._m: Tensor | None = None
        self._state: Any = None

    def set_begin_index(self, begin_index: int = 0) -> None:
        if begin_index:
            self.add_noise()

    def add_noise(self, *_args, **_kwargs) -> Tensor:
        """Raises UserError: image-to-image pipelines start in the middle, from a noised image."""
        raise UserError("every step of this solver refers back to the initial noise: it cannot start in the middle, as "
                        "image-to-image needs; use another scheduler for that")  # fmt: skip

    def scale_model_input(self, sample: Tensor, timestep: Tensor | float | None = None) -> Tensor:
        return sample

    def step(
        self,
        model_output: Tensor,
        timestep: Tensor | float,
        sample: Tensor,
        generator: torch.Generator | None = None,
        return_dict: bool = True,
        eta: float = 0.0,
        use_clipped_model_output: bool | None = None,
    ) -> SchedulerOutput | tuple[Tensor]:
        """Make one step of the solver.

        Args:
            model_output: the network's output at `sample` [B, ...].
            timestep: the current entry of `timesteps`.
            sample: the current state [B, ...].
            generator: draws the fresh noises of a solver that adds some; others ignore it.
            return_dict: whether to return a SchedulerOutput rather than a tuple.
            eta, use_clipped_model_output: DDIM's options, which must be 0 and false: a tableau has its own noise.

        Returns:
            The next state, as `prev_sample` or in a tuple.

        Raises:
            UserError: if a step was left out, `sample` is not the result of the previous step, or the network's output
                is no tensor, is not finite or has another shape than `sample`.
        """
        if eta or use_clipped_model_output:
            raise UserError(f"solver {self.tableau.name} has its own noise, if any, and clips nothing: leave out eta "
                            "and use_clipped_model_output")  # fmt: skip
        i = len(self._evaluations)
        try:
            time = math.nan if isinstance(timestep, str) else float(timestep)
        except (TypeError, ValueError, RuntimeError, OverflowError):  # None, or one for each sample
            time = math.nan
        if i == self.tableau.nfe or not math.isclose(time, self.timesteps[i], rel_tol=1e-3, abs_tol=1e-6):
            got = shown(timestep) if math.isnan(time) else f"{time:g}"
            raise UserError(f"solver {self.tableau.name} takes its {self.tableau.nfe} steps in turn: got timestep "
                            f"{got} as number {i + 1}; call set_timesteps to start anew")  # fmt: skip
        model_output = self._checked(model_output, sample)
        basis, precision = self.tableau.basis, torch.promote_types(sample.dtype, torch.float32)
        if i == 0:
            self._state = sample.to(precision, copy=True)  # some pipelines write into their samples
            self._grid = tokens.grid(sample, self.config.size, basis.axes)
            basis.check(image := self._grid.image(self._state))
            self._x_T, self._m = basis.to(image), self.tableau.constant(image)
        elif sample.shape != self._state.shape or not torch.equal(sample, self._state.to(sample.dtype)):
            raise UserError("the sample was changed between two steps, which this solver does not allow: every step "
                            "refers back to the initial noise")  # fmt: skip
        output = model_output.to(precision, copy=True)  # a captured CUDA graph returns the same memory at every call
        x0 = X0[self.prediction](self._state, output, self.alpha[i], self.sigma[i])
        self._evaluations.append(self._in_basis(x0))
        for _ in range(self.tableau.needs(i + 1) - len(self._fresh)):
            z = randn_tensor(sample.shape, generator=generator, device=sample.device, dtype=precision)
            self._fresh.append(self._in_basis(z))
        state = basis.back(self.tableau.state(i + 1, self._x_T, self._evaluations, self._m, self._fresh))
        self._state = self._grid.tokens(state)
        previous = self._state.to(sample.dtype, copy=True)
        return SchedulerOutput(prev_sample=previous) if return_dict else (previous,)

    def _in_basis(self, x: Tensor) -> Tensor:
        return self.tableau.basis.to(self._grid.image(x))

    def _checked(self, output: Tensor, sample: Tensor) -> Tensor:
        """The network's output, without a learned variance, if it is finite and has the shape of the sample."""
        for what, value in (("the sample", sample), ("the network's output", output)):
            if not isinstance(value, Tensor) or not value.is_floating_point() or value.ndim < 2:
                raise UserError(f"{what} must be a tensor [B, C, ...] of floating-point numbers, got {shown(value)}")
        i, channels = len(self._evaluations), sample.shape[1]
        if str(self.config.variance_type).startswith("learned") and output.shape[1] == 2 * channels:
            output = output[:, :channels]
        if output.shape != sample.shape:
            raise UserError(f"the network's output has shape {list(output.shape)}, but the sample has "
                            f"{list(sample.shape)}; this scheduler needs the same")  # fmt: skip
        check_finite(output, i, self.tableau)
        return output

    def __len__(self) -> int:
        return self.config.num_train_timesteps


def _from_folder(cls: type[S4SScheduler], folder: str, options: dict) -> S4SScheduler:
    try:
        return cls.from_pretrained(folder, **options)
    except OSError as error:
        reason = str(error).strip().splitlines() or [type(error).__name__]
        raise UserError(f"{folder}: neither a file, nor a folder or a hub's id of a scheduler ({reason[0]})") from None


def _name(table: Tableau) -> str:
    return noise.describe(table.noise)["name"]
