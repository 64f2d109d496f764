"""Classical solvers by name. This is the public import path; the code is in s4spipe.solvers."""

from s4spipe.solvers.registry import CLASSICAL, build, coefficients, evals_per_step, parse

__all__ = ["CLASSICAL", "build", "coefficients", "evals_per_step", "parse"]
