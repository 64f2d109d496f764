"""Noises drawn one by one, samples made from them shard by shard, and the teacher's pairs on disk."""

import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

import s4spipe
from s4spipe import ranks
from s4spipe.errors import UserError
from s4spipe.files import Scratch, read_tensors, signature, write_tensors
from s4spipe.models.denoiser import Denoiser
from s4spipe.sampling import sample
from s4spipe.tableau import Tableau

PAIRS = (Path("pairs/train.safetensors"), Path("pairs/validation.safetensors"))  # of the stage teacher_pairs

# Apart by construction, whatever the seeds and counts.
STREAMS = {"train": 0, "validation": 1, "sample": 2, "reference": 3, "search": 4}


def draw(
    denoiser: Denoiser, stream: str, seed: int, indices: range, conditional: bool = True
) -> tuple[Tensor, Tensor | None]:
    """x_T [n, *sample_shape], float32 of standard deviation sigma_T, and conditions [n] (None if not conditional).

    Each row is a function of (seed, stream, index) alone: it does not depend on its neighbours, on the batch size or on
    the device. Conditions are random, but a list of prompts is sampled from in order.
    """
    noises, labels = [], []
    for index in indices:
        rng = np.random.default_rng((seed, STREAMS[stream], index))
        noises.append(rng.standard_normal(denoiser.sample_shape))
        in_turn = denoiser.in_order and stream in ("sample", "reference")
        labels.append(index % denoiser.num_classes if in_turn else rng.integers(max(denoiser.num_classes, 1)))
    x_T = torch.tensor(np.stack(noises) * denoiser.noise_schedule.sigma_T, dtype=torch.float32)
    return x_T, torch.tensor(labels) if conditional and denoiser.num_classes else None


@dataclass(frozen=True)
class Pairs:
    """x_T [n, ...] noises, x_0 [n, ...] the teacher's samples from them, condition [n] or None."""

    x_T: Tensor
    x_0: Tensor
    condition: Tensor | None

    def __len__(self) -> int:
        return len(self.x_T)

    @classmethod
    def of(cls, shards: Iterable[dict]) -> "Pairs":
        """The shards of `solve`, joined."""
        shards = list(shards)
        x_T, x_0 = (torch.cat([shard[key] for shard in shards]) for key in ("x_T", "x_0"))
        return cls(x_T, x_0, torch.cat([s["condition"] for s in shards]) if "condition" in shards[0] else None)

    def take(self, index: Tensor) -> "Pairs":
        """Those of the `index`."""
        index = index.to(self.x_T.device)
        return Pairs(self.x_T[index], self.x_0[index], None if self.condition is None else self.condition[index])

    def save(self, path: str | Path) -> None:
        tensors = {"x_T": self.x_T, "x_0": self.x_0}
        write_tensors(path, tensors if self.condition is None else tensors | {"condition": self.condition})

    @classmethod
    def load(cls, path: str | Path, device: torch.device, count: int | None = None) -> "Pairs":
        """The first `count` pairs. Raises UserError if the file is broken or has fewer."""
        tensors, _ = read_tensors(path)
        count = len(tensors["x_T"]) if count is None else count
        if len(tensors["x_T"]) < count:
            raise UserError(
                f"{path}: holds {len(tensors['x_T'])} pairs, {count} were asked for: raise teacher.train or "
                "teacher.validation in params.yaml, or ask for fewer pairs"
            )
        x_T, x_0, condition = (
            tensors[k][:count].to(device) if k in tensors else None for k in ("x_T", "x_0", "condition")
        )
        return cls(x_T, x_0, condition)


def origin(denoiser: Denoiser) -> dict:
    """Where a solver that was learned from the pairs comes from, for its file."""
    return {"model": denoiser.identity, "pairs": signature(PAIRS[0].parent), "s4spipe": s4spipe.__version__}


def batches(index: Tensor, size: int) -> tuple[Tensor, ...]:
    """`index`, `size` at a time; none of none, where `split` gives an empty one."""
    return index.split(size) if len(index) else ()


@torch.inference_mode()
def solve(
    denoiser: Denoiser,
    tableau: Tableau,
    stream: str,
    seed: int,
    count: int,
    batch_size: int,
    device: torch.device,
    scratch: Scratch,
    conditional: bool = True,
    finish: Callable[[Tensor], Tensor] | None = None,
) -> Iterator[dict]:
    """Shards of up to `batch_size` samples: x_T, x_0, condition (absent if None) on the CPU, and the seconds they took.

    With `finish` a shard is only what that makes of x_0 (as `x_0`), and the seconds before it.

    A shard that `scratch` has is not made again. Several processes make a part of the shards each; the first one then
    gets them all, the others none.
    """
    ranges = [range(start, min(start + batch_size, count)) for start in range(0, count, batch_size)]
    own = ranks.share(ranges)
    bar = ranks.progress(total=sum(map(len, own)), desc=f"{tableau.name} {stream}", unit="sample")

    def get(indices: range) -> dict:
        def make() -> dict:
            x_T, condition = draw(denoiser, stream, seed, indices, conditional)
            on_device = None if condition is None else condition.to(device)
            started = time.perf_counter()
            x_0 = sample(denoiser, tableau, x_T.to(device), on_device)
            synchronize(device)
            seconds = time.perf_counter() - started
            if finish is not None:
                return {"x_0": finish(x_0).cpu(), "seconds": seconds}
            shard = {"x_T": x_T, "x_0": x_0.cpu(), "seconds": seconds}
            return shard if condition is None else shard | {"condition": condition}

        return scratch.once(f"{stream}-{indices.start}-{indices.stop}", make)

    for indices in own:
        shard = get(indices)
        bar.update(len(indices))
        if ranks.world() == 1:
            yield shard
    bar.close()
    if ranks.world() > 1:
        ranks.wait()
        yield from map(get, ranges if ranks.first() else [])


def synchronize(device: torch.device) -> None:
    """Wait until a GPU has done what it was told, so that a clock can be read."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
