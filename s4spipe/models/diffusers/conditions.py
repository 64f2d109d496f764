"""What a pipeline's `encode_prompt` returns, taken apart into tensors for each prompt and put together for a batch.

It returns tuples, lists or mappings of tensors, of which some have a row (or several) for every prompt, and others
none. Which is which is told by encoding one prompt alone and twice over. A rule is JSON-ready data that says so.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor

from s4spipe.models.diffusers import prompts
from s4spipe.runtime.errors import UserError, shown

Rule = dict[str, Any]


def rule(one: Any, two: Any) -> Rule:
    """How what was returned for one prompt (`one`) grows when it is given twice (`two`).

    If that is not understood (lengths that are added up, say), prompts are evaluated alone.
    """
    if isinstance(one, Tensor) and isinstance(two, Tensor):
        if one.shape == two.shape:
            return {"is": "constant"}
        if two.shape == (2 * len(one), *one.shape[1:]):
            blocks = len(one) > 1 and torch.allclose(two, one.repeat_interleave(2, 0), rtol=1e-3, atol=1e-5)
            return {"is": "rows", "blocks": len(one) if blocks else 1}
    elif isinstance(one, list | tuple) and isinstance(two, list | tuple):
        kind = "list" if isinstance(one, list) else "tuple"
        if len(one) == len(two):
            return {"is": kind, "of": [rule(a, b) for a, b in zip(one, two, strict=True)]}
        if len(two) == 2 * len(one) and all(isinstance(part, Tensor) for part in (*one, *two)):
            return {"is": "one for each", "count": len(one)}
    elif isinstance(one, dict) and isinstance(two, dict) and list(one) == list(two):
        return {"is": "dict", "of": {key: rule(one[key], two[key]) for key in one}}
    elif type(one) is type(two) and one == two and isinstance(one, str | int | float | None):
        return {"is": "value", "value": one}
    if isinstance(one, Tensor):
        return {"is": "alone"}
    raise UserError(f"this pipeline's encode_prompt returns {shown(one, 60)} for a prompt and {shown(two, 60)} for "
                    "two, which are neither tensors nor a constant")  # fmt: skip


def alone(how: Rule) -> bool:
    """Whether what was returned for several prompts cannot be put together."""
    inner = how.get("of", [])
    return (
        how["is"] == "alone"
        or how.get("alone", False)
        or any(map(alone, inner.values() if isinstance(inner, dict) else inner))
    )


def agree(rows: list[list[Tensor]], rules: list[Rule]) -> bool:
    """Whether what has no rows for each prompt, by the rules, is the same for prompts whose tensors have equal shapes.

    Args:
        rows: the `tensors` of each prompt, for one rule after another.
    """
    for row in rows[1:]:
        if [part.shape for part in row] != [part.shape for part in rows[0]]:
            continue
        both = (iter(rows[0]), iter(row))
        if not all(_agrees(*both, how) for how in rules):
            return False
    return True


def _agrees(one: Iterator[Tensor], other: Iterator[Tensor], how: Rule) -> bool:
    if how["is"] in ("value", "one for each"):
        for _ in range(how.get("count", 0)):
            next(one), next(other)
        return True
    if how["is"] in ("constant", "rows", "alone"):
        a, b = next(one), next(other)
        return how["is"] != "constant" or torch.equal(a, b)
    inner = how["of"].values() if how["is"] == "dict" else how["of"]
    return all(_agrees(one, other, sub) for sub in inner)


def tensors(made: Any, how: Rule) -> list[Tensor]:
    """All tensors of what was returned for one prompt, in order."""
    if how["is"] in ("constant", "rows", "alone"):
        return [made]
    if how["is"] == "one for each":
        return list(made)
    if how["is"] == "value":
        return []
    inner = how["of"].items() if how["is"] == "dict" else enumerate(how["of"])
    return [tensor for key, sub in inner for tensor in tensors(made[key], sub)]


def together(parts: list[list[Tensor]], rules: list[Rule]) -> list[Any]:
    """What encode_prompt returns for all of these prompts, from the `tensors` of each; one entry for each rule.

    Raises RuntimeError if their tensors have different shapes.
    """
    queues = [iter(one) for one in parts]
    return [_joined(queues, how) for how in rules]


def _joined(queues: list[Iterator[Tensor]], how: Rule) -> Any:
    if how["is"] == "value":
        return how["value"]
    if how["is"] == "one for each":
        return [next(queue) for queue in queues for _ in range(how["count"])]
    if how["is"] in ("constant", "alone"):
        return [next(queue) for queue in queues][-1]  # of each, as their places move together
    if how["is"] == "rows":
        parts = [next(queue).chunk(how["blocks"]) for queue in queues]
        return torch.cat([part[k] for k in range(how["blocks"]) for part in parts])
    if how["is"] == "dict":
        return {key: _joined(queues, sub) for key, sub in how["of"].items()}
    made = [_joined(queues, sub) for sub in how["of"]]
    return made if how["is"] == "list" else tuple(made)


def stacked(encoded: list[list[Tensor]]) -> dict[str, Tensor]:
    """The `tensors` of all prompts by names: "3" is tensor 3 of all of them [n, ...], "3/7" that of prompt 7 where
    their shapes differ."""
    found = {}
    for j, parts in enumerate(zip(*encoded, strict=True)):
        if len({(part.shape, part.dtype) for part in parts}) == 1:
            found[f"{j}"] = torch.stack(parts)
        else:
            found |= {f"{j}/{i}": part for i, part in enumerate(parts)}
    return found


class Encoded:
    """The file of the stage `prompts` for a pipeline without an adapter of its own, read prompt by prompt.

    Raises UserError for another file.
    """

    def __init__(self, path: str | Path):
        about = prompts.read_about(path)
        if "rules" not in about:
            raise UserError(f"{path}: was made by another adapter; make it again with `dvc repro -f prompts`")
        self.rules, self.count = about["rules"], len(about["prompts"])
        self.alone = any(map(alone, self.rules))
        self.file = safe_open(path, framework="pt")
        names = set(self.file.keys())
        self.apart = {name.split("/")[0] for name in names if "/" in name}  # those whose shapes differ
        self.names = sorted({name.split("/")[0] for name in names}, key=int)
        for j in self.names:
            needed = {f"{j}/{i}" for i in range(self.count)} if j in self.apart else {j}
            if not needed <= names or (j not in self.apart and self.file.get_slice(j).get_shape()[:1] != [self.count]):
                raise UserError(f"{path}: does not hold {self.count} embeddings of each kind; make it again with "
                                "`dvc repro -f prompts`")  # fmt: skip

    def __len__(self) -> int:
        return self.count

    def shapes(self, index: int) -> tuple:
        """The shapes of those tensors of a prompt that differ between prompts."""
        return tuple(tuple(self.file.get_slice(f"{j}/{index}").get_shape()) for j in self.names if j in self.apart)

    def tensors(self, index: int, like: Tensor) -> list[Tensor]:
        """All tensors of a prompt, on the device of `like`, and in its dtype if they are of floating-point numbers."""
        found = []
        for j in self.names:
            apart = j in self.apart
            tensor = self.file.get_tensor(f"{j}/{index}") if apart else self.file.get_slice(j)[index]
            found.append(tensor.to(like.device, like.dtype if tensor.is_floating_point() else tensor.dtype))
        return found
