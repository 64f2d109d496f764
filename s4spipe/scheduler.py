"""Any solver of ours in any pipeline of diffusers.

pipe.scheduler = S4SScheduler.from_tableau("solver.json", pipe.scheduler.config)
pipe.scheduler = S4SScheduler.from_classical("unipc_bh2", "logsnr", 8, pipe.scheduler.config)
pipe(..., num_inference_steps=8)
"""

import json
import math
import re
from pathlib import Path

import torch
from diffusers import ConfigMixin, SchedulerMixin
from diffusers.configuration_utils import register_to_config
from diffusers.schedulers.scheduling_utils import SchedulerOutput
from torch import Tensor

from s4spipe import classical, noise, steps
from s4spipe.errors import UserError, unknown
from s4spipe.models.prediction import X0, is_flow, noise_schedule
from s4spipe.noise import Flow, VPDiscrete
from s4spipe.tableau import Tableau

HUB_ID = re.compile(r"[\w.-]+/[\w.-]+(?<!\.json)")


class S4SScheduler(SchedulerMixin, ConfigMixin):
    """A tableau as a diffusers scheduler.

    Its state is kept in float32 (or what the pipeline computes in, if that is more), whatever the network's precision.
    It starts from noise of standard deviation `init_noise_sigma`: 1 for the models that diffusers has pipelines for
    (discrete VP noise, flow matching), as with their other schedulers, and sigma_T for others (VE noise, as of EDM's
    models), which it serves in a loop of the caller's own; there `timesteps` are the model's own times.

    Args:
        tableau: `Tableau.to_dict()` of a solver.
        prediction_type: what the network predicts: epsilon, sample, v_prediction or flow_prediction.
        num_train_timesteps: of a flow model, its time at t = 1.
        use_flow_sigmas: makes the pipeline of Flux leave the times to its scheduler.

    Raises UserError for a tableau that no pipeline can run.
    """

    order = 1

    @register_to_config
    def __init__(
        self,
        tableau: dict,
        prediction_type: str = "epsilon",
        num_train_timesteps: int = 1000,
        use_flow_sigmas: bool = True,
    ):
        self.tableau = table = Tableau.from_dict(dict(tableau))
        flow = isinstance(table.noise, Flow)
        self.init_noise_sigma = 1.0 if isinstance(table.noise, VPDiscrete | Flow) else table.noise.sigma_T
        if prediction_type not in X0:
            raise unknown("prediction_type", prediction_type, X0)
        if flow != (prediction_type == "flow_prediction"):
            raise UserError(f"solver {table.name} is for {_name(table)} noise, where no network predicts "
                            f"{prediction_type!r}")  # fmt: skip
        if table.c_0 != 1:
            raise UserError(f"solver {table.name} makes its first step without the network (AFS), which no pipeline "
                            "does: run it by s4spipe.sample")  # fmt: skip
        self.alpha, self.sigma = table.noise.alpha(table.t_c).tolist(), table.noise.sigma(table.t_c).tolist()
        self.timesteps = self._times()
        self._restart()

    @classmethod
    def from_tableau(
        cls,
        solver: str | Path | Tableau,
        config: dict | None = None,
        *,
        repo: str | None = None,
        rev: str | None = None,
    ) -> "S4SScheduler":
        """A scheduler from a solver: its file, a tableau, a folder of `save_pretrained` or `s4spipe export`, or such a
        folder's id on a hub of models.

        config: that of the pipeline's own scheduler, which says what the network predicts and under which noise.
            Without one the network predicts epsilon, a flow's velocity, or for other noise than pipelines have, x0.
        repo, rev: the git repository of a DVC project (an address or a path), and its commit or tag, that has the file.

        Raises UserError for what is no solver, and for a solver that was made for another noise schedule.
        """
        if repo is not None:
            solver = _from_project(str(solver), repo, rev)
        elif not isinstance(solver, Tableau):
            if Path(solver).is_dir() or (not Path(solver).exists() and HUB_ID.fullmatch(str(solver))):
                return _from_folder(cls, str(solver))
            solver = Tableau.load(solver)
        config = dict(config or {})
        for_flow = isinstance(solver.noise, Flow)
        # By keyword alone does diffusers know a value from a default that it may forget.
        options = {"tableau": solver.to_dict(), "prediction_type": _usual_prediction(solver)}
        if not config:
            return cls(**options)
        if not isinstance(solver.noise, VPDiscrete | Flow):
            raise UserError(
                f"solver {solver.name} is for {_name(solver)} noise, which diffusers' pipelines do not have: run it by "
                "s4spipe.sample, or leave the config out and run a loop of your own"
            )
        if is_flow(config) != for_flow:
            raise UserError(f"solver {solver.name} is for {_name(solver)} noise, the pipeline's model for "
                            f"{'flow' if is_flow(config) else 'vp_discrete'}")  # fmt: skip
        if isinstance(solver.noise, VPDiscrete):
            theirs, ours = (torch.tensor(n.alphas_cumprod) for n in (noise_schedule(config), solver.noise))
            if len(theirs) != len(ours) or not torch.allclose(theirs, ours, rtol=1e-4, atol=1e-7):
                raise UserError(f"solver {solver.name} was made for another model: its alphas_cumprod are not those of "
                                "the pipeline's scheduler")  # fmt: skip
            options["prediction_type"] = config.get("prediction_type", "epsilon")
        return cls(**options, num_train_timesteps=config.get("num_train_timesteps", 1000))

    @classmethod
    def from_classical(cls, solver: str, schedule: steps.Schedule, nfe: int, config: dict) -> "S4SScheduler":
        """A scheduler of a classical solver by its name, on a schedule, for the model of a pipeline's scheduler config.

        Raises UserError for an unknown name, and for an NFE that the solver cannot spend.
        """
        model = noise_schedule(dict(config))
        t = steps.build(schedule, model, len(classical.costs(solver, nfe)))
        return cls.from_tableau(classical.build(solver, model, t, {"steps": schedule}, nfe), config)

    def set_timesteps(
        self,
        num_inference_steps: int | None = None,
        device: torch.device | str | None = None,
        timesteps: list | None = None,
        mu: float | None = None,
    ) -> None:
        """Start anew. `mu`, by which some pipelines shift a flow model's times, changes nothing: ours are the solver's.

        Raises UserError for another number of steps than the solver's NFE, and for timesteps of the caller's own.
        """
        nfe = self.tableau.nfe
        if timesteps is not None or num_inference_steps not in (None, nfe):
            asked = "timesteps" if timesteps is not None else f"num_inference_steps={num_inference_steps}"
            raise UserError(
                f"solver {self.tableau.name} makes {nfe} evaluations at its own times: call the pipeline with "
                f"num_inference_steps={nfe}, got {asked}"
            )
        self.num_inference_steps, self.timesteps = nfe, self._times().to(device)
        self._restart()

    @property
    def nfe(self) -> int:
        """What `num_inference_steps` has to be."""
        return self.tableau.nfe

    def _times(self) -> Tensor:
        scale = self.config.num_train_timesteps if isinstance(self.tableau.noise, Flow) else 1
        return (scale * self.tableau.t_c).float()

    def _restart(self) -> None:
        self._evaluations: list[Tensor] = []
        self._x_T = self._state = None

    def set_begin_index(self, begin_index: int = 0) -> None:
        if begin_index:
            self.add_noise()

    def add_noise(self, *_args, **_kwargs) -> Tensor:
        """Raises UserError: image-to-image pipelines start from a noised image, in the middle."""
        raise UserError("every step of this solver goes back to the noise it started from: it cannot start in the "
                        "middle, as image-to-image needs; use another scheduler there")  # fmt: skip

    def scale_model_input(self, sample: Tensor, timestep: Tensor | float | None = None) -> Tensor:
        return sample

    def step(
        self,
        model_output: Tensor,
        timestep: Tensor | float,
        sample: Tensor,
        generator: torch.Generator | None = None,
        return_dict: bool = True,
    ) -> SchedulerOutput | tuple[Tensor]:
        """From the network's output at the state `sample` to the next state.

        Raises UserError if steps are left out, or the sample is not what the step before gave.
        """
        i = len(self._evaluations)
        if i == self.tableau.nfe or not math.isclose(timestep, self.timesteps[i], rel_tol=1e-3, abs_tol=1e-6):
            raise UserError(f"solver {self.tableau.name} takes its {self.tableau.nfe} steps in turn: got timestep "
                            f"{float(timestep):g} as number {i + 1}; call set_timesteps to start anew")  # fmt: skip
        precision = torch.promote_types(sample.dtype, torch.float32)
        if i == 0:
            self._x_T = self._state = sample.to(precision)
        elif sample.shape != self._state.shape or not torch.equal(sample, self._state.to(sample.dtype)):
            raise UserError("the sample was changed between two steps, which this solver cannot follow: its every step "
                            "goes back to the noise it started from")  # fmt: skip
        x0 = X0[self.config.prediction_type](self._state, model_output.to(precision), self.alpha[i], self.sigma[i])
        self._evaluations.append(x0)
        state = self.tableau.c[i].item() * self._x_T
        for weight, evaluation in zip(self.tableau.W[i].tolist(), self._evaluations, strict=False):
            state = state + weight * evaluation
        self._state = state
        previous = state.to(sample.dtype)
        return SchedulerOutput(prev_sample=previous) if return_dict else (previous,)

    def __len__(self) -> int:
        return self.config.num_train_timesteps


def _from_project(path: str, repo: str, rev: str | None) -> Tableau:
    """A solver's file out of another DVC project, as `dvc get` would fetch it."""
    from dvc import api
    from dvc.exceptions import DvcException

    try:
        text = api.read(path, repo=repo, rev=rev)
    except (DvcException, OSError, ValueError) as error:
        reason = str(error).strip().splitlines() or [type(error).__name__]
        raise UserError(
            f"{repo}: no {path} can be read from that project{f' at {rev}' if rev else ''} ({reason[0]})"
        ) from None
    try:
        return Tableau.from_dict(json.loads(text))
    except json.JSONDecodeError as error:
        raise UserError(f"{path} of {repo}: not valid JSON ({error})") from None
    except UserError as error:
        raise UserError(f"{path} of {repo}: {error}") from None


def _from_folder(cls: type[S4SScheduler], folder: str) -> S4SScheduler:
    try:
        return cls.from_pretrained(folder)
    except OSError as error:
        reason = str(error).strip().splitlines() or [type(error).__name__]
        raise UserError(f"{folder}: neither a file, nor a folder or a hub's id of a scheduler ({reason[0]})") from None


def _usual_prediction(table: Tableau) -> str:
    if isinstance(table.noise, Flow):
        return "flow_prediction"
    return "epsilon" if isinstance(table.noise, VPDiscrete) else "sample"


def _name(table: Tableau) -> str:
    return noise.describe(table.noise)["name"]
