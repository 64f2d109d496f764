"""What pipelines give the steps of other schedulers, and which pipelines want one of those and no other."""

import math
from typing import Any

from torch import Tensor

from s4spipe.runtime.errors import UserError, shown

# Options that pipelines give, with the only value that means nothing here; None: whatever it is.
OPTIONS: dict[str, Any] = {"eta": 0, "use_clipped_model_output": False, "s_churn": 0}
OPTIONS |= dict.fromkeys(("prev_timestep", "s_noise", "s_tmin", "s_tmax"))

# Pipelines whose own code works with the classes of some schedulers.
INVERTING = ("LEditsPPPipelineStableDiffusion", "LEditsPPPipelineStableDiffusionXL")
INDEXING = ("KandinskyImg2ImgPipeline",)


def check_pipeline(pipe: object, times: Tensor, solver: str) -> None:
    """Raises UserError for a pipeline that would end in an error of its own with a solver of these times."""
    name = type(pipe).__name__
    if name in INVERTING:
        raise UserError(f"{name} inverts images by formulas of DDIMScheduler and DPMSolverMultistepScheduler: it runs "
                        f"no other scheduler, and so not the solver {solver}")  # fmt: skip
    if name in INDEXING and times.is_floating_point():
        raise UserError(f"{name} takes its scheduler's times for indices, and those of solver {solver} are no whole "
                        f"numbers ({shown(times.tolist())}): use the pipeline's own scheduler")  # fmt: skip


def number(timestep: Any) -> float:
    """A time; NaN for what is none, such as None or one for each sample."""
    try:
        return math.nan if isinstance(timestep, str) else float(timestep)
    except (TypeError, ValueError, RuntimeError, OverflowError):
        return math.nan


def check(options: dict[str, Any], time: float, solver: str) -> None:
    """Raises UserError for an option of a step at some time that would change what the solver does."""
    of_tokens = options.pop("per_token_timesteps", None)  # of LTX-Video
    if of_tokens is not None and not (abs(of_tokens - time) <= 1e-3 * abs(time)).all():
        raise UserError("this pipeline takes some of its tokens at other times than the rest (per_token_timesteps), "
                        "which this scheduler does not: use the pipeline's own scheduler")  # fmt: skip
    for key, value in options.items():
        if key not in OPTIONS:
            raise UserError(f"solver {solver} does not know {shown(key)}, which this pipeline gives its scheduler's "
                            "step")  # fmt: skip
        if OPTIONS[key] is not None and value is not None and value != OPTIONS[key]:
            raise UserError(f"solver {solver} has its own noise, if any, and clips nothing: leave out {key}, got "
                            f"{shown(value)}")  # fmt: skip
