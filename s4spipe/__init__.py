"""s4spipe: learned few-step ODE solvers for diffusion models, as a DVC pipeline."""

from typing import TYPE_CHECKING, Any

from s4spipe.sampling.loop import sample
from s4spipe.sampling.tableau import Tableau

if TYPE_CHECKING:
    from s4spipe.scheduler.applied import apply

__version__ = "0.2.0"
__all__ = ["Tableau", "apply", "sample"]


def __getattr__(name: str) -> Any:
    if name == "apply":  # needs diffusers, which takes seconds to import
        from s4spipe.scheduler.applied import apply

        return apply
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
