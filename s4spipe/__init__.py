"""s4spipe: learned few-step ODE solvers for diffusion models, as a DVC pipeline."""

from s4spipe.sampling import sample
from s4spipe.tableau import Tableau

__version__ = "0.1.0"
__all__ = ["Tableau", "sample"]
