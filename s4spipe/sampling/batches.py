"""Drawing noises, and making samples from them in shards."""

import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from torch import Tensor

from s4spipe.models.base.denoiser import Denoiser
from s4spipe.runtime import distributed
from s4spipe.runtime.ahead import ahead
from s4spipe.runtime.scratch import Scratch
from s4spipe.sampling.brownian import increments
from s4spipe.sampling.loop import sample
from s4spipe.sampling.rk45 import solve
from s4spipe.sampling.tableau import Tableau
from s4spipe.sampling.tableau.adaptive import Adaptive

# Independent of one another, whatever the seeds and counts.
STREAMS = {"train": 0, "validation": 1, "sample": 2, "reference": 3, "search": 4, "statistics": 5}


@dataclass(frozen=True)
class Noises:
    """The first `count` noises of a stream.

    Attributes:
        stream: a key of STREAMS.
        seed: of the stream.
        count: how many.
    """

    stream: str
    seed: int
    count: int


def draw(denoiser: Denoiser, stream: str, seed: int, indices: range) -> tuple[Tensor, Tensor | None]:
    """Draw noises and conditions for a model, on its device.

    Each row is a function of (seed, stream, index) only: it does not depend on its neighbours, the batch size or the
    device. Conditions are random, except that samples use prompts in order.

    Returns:
        x_T [n, *sample_shape], float32 with standard deviation sigma_T, and conditions [n], or None if the model has
        none or is sampled without.
    """
    noises, conditions = [], []
    for index in indices:
        rng = np.random.default_rng((seed, STREAMS[stream], index))
        noises.append(rng.standard_normal(denoiser.sample_shape))
        in_turn = denoiser.in_order and stream in ("sample", "reference")
        conditions.append(index % denoiser.num_classes if in_turn else rng.integers(max(denoiser.num_classes, 1)))
    scaled = (np.stack(noises) * denoiser.noise_schedule.sigma_T).astype(np.float32)  # some devices have no float64
    x_T = torch.tensor(scaled, device=denoiser.device)
    if not (denoiser.conditional and denoiser.num_classes):
        return x_T, None
    return x_T, torch.tensor(conditions, device=denoiser.device)


def fresh(denoiser: Denoiser, noises: Noises, indices: range, tableau: Tableau | Adaptive) -> Tensor | tuple[()]:
    """The fresh noises z that a solver adds to these samples on the way; each row is a function of (seed, stream,
    index) and the solver's `t_z` only, as in `draw`.

    With `t_z`, they are increments of one Brownian path of the sample, whatever the solver and its steps are (see
    `brownian.increments`). Without, they are `independent`.

    Returns:
        z [Z, n, *sample_shape], float32 of standard deviation 1.
    """
    if isinstance(tableau, Adaptive) or not tableau.draws:
        return ()
    if tableau.t_z is None:
        return independent(denoiser, noises, indices, tableau.draws)
    drawn = np.empty((tableau.draws, len(indices), *denoiser.sample_shape), np.float32)
    for row, index in enumerate(indices):
        of_node = partial(_of_node, (noises.seed, STREAMS[noises.stream], index), denoiser.sample_shape)
        drawn[:, row] = increments(tableau.noise, tableau.t_z, of_node)
    return torch.tensor(drawn, device=denoiser.device)


def independent(denoiser: Denoiser, noises: Noises, indices: range, count: int) -> Tensor:
    """Fresh noises z [count, n, *sample_shape] that are independent; fewer are the first ones of more."""
    drawn = np.empty((count, len(indices), *denoiser.sample_shape), np.float32)
    for row, index in enumerate(indices):
        rng = np.random.default_rng((noises.seed, STREAMS[noises.stream], index, 1))
        drawn[:, row] = rng.standard_normal(drawn[:, row].shape)
    return torch.tensor(drawn, device=denoiser.device)


def _of_node(key: tuple[int, ...], shape: tuple[int, ...], node: int) -> np.ndarray:
    return np.random.default_rng((*key, 2, node)).standard_normal(shape)


@torch.inference_mode()
def generate(
    denoiser: Denoiser,
    solver: Tableau | Adaptive,
    noises: Noises,
    batch_size: int,
    scratch: Scratch | None = None,
    finish: Callable[[Tensor], Tensor] | None = None,
) -> Iterator[dict]:
    """Make samples in shards of up to `batch_size`, in order.

    A shard has x_T, x_0 and condition (absent if None), all on the CPU, and the `seconds` that sampling took; of an
    adaptive solver, also how many `evaluations` each sample took. Several
    processes share the shards between them; the main process then yields all of them, the others none. They need a
    `scratch` that all can see.

    Args:
        denoiser: the model.
        solver: the solver.
        noises: where the samples start.
        batch_size: samples per shard.
        scratch: where finished shards are kept, so that they are not made again; None keeps none.
        finish: if given, a shard holds only finish(x_0), as `x_0`, and what sampling cost.
    """
    ranges = [range(start, min(start + batch_size, noises.count)) for start in range(0, noises.count, batch_size)]
    own = distributed.shard(ranges)
    bar = distributed.progress(total=sum(map(len, own)), desc=f"{solver.name} {noises.stream}", unit="sample")

    def drawn(indices: range) -> tuple[Tensor, Tensor | None, Tensor | tuple[()]]:
        x_T, condition = draw(denoiser, noises.stream, noises.seed, indices)
        return x_T, condition, fresh(denoiser, noises, indices, solver)

    def get(indices: range, given: tuple[Tensor, Tensor | None, Tensor | tuple[()]] | None = None) -> dict:
        def make() -> dict:
            x_T, condition, z = given or drawn(indices)
            synchronize(x_T.device)
            started = time.perf_counter()
            cost: dict = {}
            if isinstance(solver, Adaptive):
                solution = solve(denoiser, solver, x_T, condition)
                x_0, cost["evaluations"] = solution.x_0, solution.evaluations.cpu()
            else:
                x_0 = sample(denoiser, solver, x_T, condition, z=z)
            synchronize(x_T.device)
            cost["seconds"] = time.perf_counter() - started
            if finish is not None:
                return {"x_0": finish(x_0).cpu(), **cost}
            shard = {"x_T": x_T.cpu(), "x_0": x_0.cpu(), **cost}
            return shard if condition is None else shard | {"condition": condition.cpu()}

        name = f"{noises.stream}-{indices.start}-{indices.stop}"
        return make() if scratch is None else scratch.once(name, make)

    for indices, given in zip(own, ahead(drawn, own), strict=True):
        shard = get(indices, given)
        bar.update(len(indices))
        if distributed.world_size() == 1:
            yield shard
    bar.close()
    if distributed.world_size() > 1:
        distributed.barrier()
        yield from map(get, ranges if distributed.is_main() else [])


def evaluations(shards: Iterable[dict]) -> dict[str, float]:
    """The mean and the most evaluations per sample in the shards of an adaptive solver; nothing for a tableau's."""
    counts = [shard["evaluations"] for shard in shards if "evaluations" in shard]
    if not counts:
        return {}
    every = torch.cat(counts)
    return {"mean": round(float(every.double().mean()), 2), "most": int(every.max())}


def synchronize(device: torch.device) -> None:
    """Wait until a GPU has finished its work, before reading the clock."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
