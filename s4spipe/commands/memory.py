"""An estimate of the memory of the device that sampling and learning take at most, from a small piece of each."""

from collections.abc import Callable
from math import prod
from typing import Any
from weakref import finalize

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from s4spipe.learning import distance, gauss_newton
from s4spipe.learning.families import Free
from s4spipe.learning.pairs import Pairs
from s4spipe.learning.task import COEFFICIENTS, TIMES
from s4spipe.models.base.denoiser import Denoiser
from s4spipe.pipeline import resolve
from s4spipe.pipeline.schema import Params
from s4spipe.sampling import rk45
from s4spipe.sampling.batches import draw
from s4spipe.sampling.loop import sample
from s4spipe.sampling.tableau.form import RK45
from s4spipe.solvers import registry

MEASURED = 2  # evaluations of the pieces; more of them add what is kept of each, and no activations
SINGLE, DOUBLE = 4, 8  # bytes of a number


def of_sampling(params: Params, denoiser: Denoiser) -> int:
    """Bytes at the peak of sampling and decoding a batch, with the network."""
    count = min(params.run.batch_size, params.sample.count)
    table = registry.make("ddim", "edm", denoiser.noise_schedule, MEASURED)

    @torch.inference_mode()
    def piece() -> None:
        x_T, condition = draw(denoiser, "sample", 0, range(count))
        denoiser.decode(sample(denoiser, table, x_T, condition))

    adaptive = params.teacher.solver == RK45  # keeps the slopes of a step, the state and what they add up to
    nfe = max(*params.nfe, 2 * len(rk45.NODES) if adaptive else params.teacher.nfe)
    kept = (nfe - MEASURED) * DOUBLE  # a prediction of each evaluation
    return _weights(denoiser) + peak(denoiser.device, piece) + max(0, kept) * count * prod(denoiser.sample_shape)


def of_learning(params: Params, denoiser: Denoiser) -> int:
    """Bytes at the peak of a fit by Gauss-Newton, with the network and the pairs; 0 if no solver is learned.

    Networks that a distance or refining looks through are not counted.
    """
    learners = [resolve.learner(params, name) for name in resolve.learned_solvers(params)]
    if not learners:
        return 0
    count = min(params.run.micro_batch_size, max(learner.batch_size for learner in learners))
    noise, nfe = denoiser.noise_schedule, max(params.nfe)
    parameters = gauss_newton.Parameters(Free(registry.make("ddim", "edm", noise, MEASURED)), (COEFFICIENTS, TIMES))
    problem = gauss_newton.Problem(parameters, denoiser, distance.l2, count)

    def piece() -> None:
        x_T, condition = draw(denoiser, "train", 0, range(count))
        problem.linearised(Pairs(x_T, torch.zeros_like(x_T), condition), 0)

    # Of each evaluation a prediction, and the derivatives of every output by it.
    kept = max(0, nfe - MEASURED) * (SINGLE + DOUBLE * (1 + gauss_newton.PROBES)) * count
    kept += 2 * SINGLE * max(learner.pairs + learner.validation_pairs + learner.batch_size for learner in learners)
    if params.refined:  # refining keeps the paths of all its pairs
        of_refine = params.refine.pairs * (SINGLE * nfe + 2 * DOUBLE)
        kept += of_refine + 2 * SINGLE * (params.refine.pairs + params.refine.validation_pairs)
    return _weights(denoiser) + peak(denoiser.device, piece) + kept * prod(denoiser.sample_shape)


def _weights(denoiser: Denoiser) -> int:
    there = {x.untyped_storage().data_ptr(): x for x in (*denoiser.parameters(), *denoiser.buffers())}
    return sum(x.untyped_storage().nbytes() for x in there.values())


def peak(device: torch.device, work: Callable[[], object]) -> int:
    """The most bytes that the tensors of some work have had at once, besides those that were there before.

    A GPU's allocator says it. Elsewhere the results of all operations are counted while they live, and once more those
    that an operation reads and makes: many rearrange them first.
    """
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        work()
        return torch.cuda.max_memory_allocated(device) - before
    with _Living() as living:
        work()
    return living.peak


class _Living(TorchDispatchMode):
    """Counts the bytes of tensors that were made within the block and live; `peak` is the most so far."""

    def __init__(self) -> None:
        super().__init__()
        self.now = self.peak = 0
        self.known: set[int] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given = {x.untyped_storage()._cdata: x for x in _tensors((args, kwargs))}
        out = func(*args, **(kwargs or {}))
        made = {x.untyped_storage()._cdata: x for x in _tensors(out)}
        for key, x in made.items():
            if key not in self.known and key not in given:
                self.known.add(key)
                self.now += (size := x.untyped_storage().nbytes())
                finalize(x.untyped_storage(), self._forget, key, size)
        rearranged = sum(x.untyped_storage().nbytes() for x in (given | made).values())
        self.peak = max(self.peak, self.now + rearranged)
        return out

    def _forget(self, key: int, size: int) -> None:
        self.known.discard(key)
        self.now -= size


def _tensors(tree: Any) -> list[Tensor]:
    return [x for x in tree_leaves(tree) if isinstance(x, Tensor)]
