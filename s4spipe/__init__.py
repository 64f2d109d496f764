"""s4spipe: learned few-step ODE solvers for diffusion models, as a DVC pipeline."""

from s4spipe.sampling.loop import sample
from s4spipe.sampling.tableau import Tableau

__version__ = "0.2.0"
__all__ = ["Tableau", "sample"]
