"""Learned families. Each registers itself under its name in params.yaml."""

from s4spipe.learning.families.adasde import AdaSDE
from s4spipe.learning.families.banded import Banded
from s4spipe.learning.families.base import FAMILIES, Family, Times, check_options, make, noisy
from s4spipe.learning.families.multistep import LMS, PC
from s4spipe.learning.families.nonstationary import BNS, GS, Free
from s4spipe.learning.families.rescaled import Bezier
from s4spipe.learning.families.schedule import Fixed
from s4spipe.learning.families.singlestep import SS

__all__ = [
    "BNS",
    "FAMILIES",
    "GS",
    "LMS",
    "PC",
    "SS",
    "AdaSDE",
    "Banded",
    "Bezier",
    "Family",
    "Fixed",
    "Free",
    "Times",
    "check_options",
    "make",
    "noisy",
]
