"""The teacher's pairs: noises and the samples that the teacher makes from them."""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from s4spipe.runtime.errors import UserError
from s4spipe.runtime.files import read_tensors, write_tensors


@dataclass(frozen=True)
class Pairs:
    """Pairs in memory.

    Attributes:
        x_T: noises [n, ...].
        x_0: the teacher's samples from them [n, ...].
        condition: their conditions [n], or None.
    """

    x_T: Tensor
    x_0: Tensor
    condition: Tensor | None

    def __len__(self) -> int:
        return len(self.x_T)

    @classmethod
    def of(cls, shards: Iterable[dict]) -> "Pairs":
        """Join the shards of `sampling.batches.generate`."""
        shards = list(shards)
        x_T, x_0 = (torch.cat([shard[key] for shard in shards]) for key in ("x_T", "x_0"))
        return cls(x_T, x_0, torch.cat([s["condition"] for s in shards]) if "condition" in shards[0] else None)

    def take(self, index: Tensor) -> "Pairs":
        """The pairs at `index`."""
        index = index.to(self.x_T.device)
        return Pairs(self.x_T[index], self.x_0[index], None if self.condition is None else self.condition[index])

    def save(self, path: str | Path, about: object = None) -> None:
        """Write them, with `about` as the file's metadata."""
        tensors = {"x_T": self.x_T, "x_0": self.x_0}
        write_tensors(path, tensors if self.condition is None else tensors | {"condition": self.condition}, about)

    @classmethod
    def load(cls, path: str | Path, device: torch.device, count: int | None = None) -> "Pairs":
        """Read the first `count` pairs of a file. Raises UserError if it is broken, has fewer, or holds NaN."""
        tensors, _ = read_tensors(path, "x_T", "x_0")
        count = len(tensors["x_T"]) if count is None else count
        if len(tensors["x_T"]) < count:
            raise UserError(
                f"{path}: holds {len(tensors['x_T'])} pairs, {count} were asked for: raise teacher.train or "
                "teacher.validation in params.yaml, or ask for fewer pairs"
            )
        if not all(tensors[key][:count].isfinite().all() for key in ("x_T", "x_0")):
            raise UserError(f"{path}: holds numbers that are not finite; make it again with `dvc repro`")
        x_T, x_0 = (tensors[key][:count].to(device) for key in ("x_T", "x_0"))
        return cls(x_T, x_0, tensors["condition"][:count].to(device) if "condition" in tensors else None)


def batches(index: Tensor, size: int) -> tuple[Tensor, ...]:
    """Split `index` into batches of `size`; an empty index gives no batch, where `split` would give an empty one."""
    return index.split(size) if len(index) else ()
