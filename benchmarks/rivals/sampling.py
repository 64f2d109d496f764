"""The teacher, and samples of any solver."""

from benchmarks.rivals.problems.problem import Problem
from s4spipe.learning.pairs import Pairs
from s4spipe.sampling.batches import Noises, generate
from s4spipe.sampling.tableau import Tableau
from s4spipe.solvers import registry

BATCH_SIZE = 500


def teacher(problem: Problem, nfe: int) -> Tableau:
    return registry.make("unipc_bh2", "logsnr", problem.denoiser.noise_schedule, nfe)


def samples(problem: Problem, tableau: Tableau, noises: Noises) -> Pairs:
    """A solver's samples, with the noises that they are from."""
    return Pairs.of(generate(problem.denoiser, tableau, noises, BATCH_SIZE))
