"""Noise schedules. This is the public import path; the code is in s4spipe.models.noise."""

from s4spipe.models.noise import (
    NOISE,
    VE,
    Flow,
    NoiseSchedule,
    VPCosine,
    VPDiscrete,
    VPLinear,
    alphas_cumprod,
    describe,
    from_description,
    precision,
)

__all__ = [
    "NOISE",
    "VE",
    "Flow",
    "NoiseSchedule",
    "VPCosine",
    "VPDiscrete",
    "VPLinear",
    "alphas_cumprod",
    "describe",
    "from_description",
    "precision",
]
