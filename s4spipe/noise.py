"""Noise schedules, for code that is not the project's: the names of `s4spipe.models.noise`."""

__all__ = [
    *("NOISE", "VE", "Flow", "NoiseSchedule", "VPCosine", "VPDiscrete", "VPLinear"),
    *("alphas_cumprod", "describe", "from_description", "precision"),
]
