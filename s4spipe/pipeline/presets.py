"""Published models: overlays on the schema's defaults, and switching params.yaml to one."""

import copy
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML

from s4spipe.pipeline import cost, fetch, params, render
from s4spipe.pipeline.layout import PARAMS
from s4spipe.pipeline.schema import Params
from s4spipe.runtime.errors import UserError, unknown
from s4spipe.runtime.files import atomic, write_text

FOLDER = files("s4spipe") / "presets"
# What belongs to a model, and so comes with its preset: these blocks and keys, whatever the user had there.
OF_THE_MODEL = ("model", "fetch", "prompts", "perceptual", "fid.network", "fid.source", "fid.mode", "fid.features",
                "fid.real", "fid.clip", "reference.source")  # fmt: skip


@dataclass(frozen=True)
class Switch:
    """What `switch` did.

    Attributes:
        kept, left_out: the user's own changes, by key; None for a key that the user took out.
        backup: where the old file is, if it is not just what a preset gives.
        unread: why no change was kept, if the old file is no parameter file of this version.
    """

    kept: dict[str, Any]
    left_out: dict[str, Any]
    backup: Path | None
    unread: str | None


def names() -> list[str]:
    return sorted(Path(entry.name).stem for entry in FOLDER.iterdir() if entry.name.endswith(".yaml"))


def read(name: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """A preset's values for params.yaml, whole, and what is known about its model. Raises UserError for an unknown
    name."""
    if name not in names():
        raise unknown("preset", name, names())
    overlay = YAML(typ="safe").load((FOLDER / f"{name}.yaml").read_text(encoding="utf-8"))
    about = overlay.pop("about")
    return merge(Params().model_dump(exclude_none=True), overlay), about


def merge(values: dict[str, Any], overlay: dict[str, Any]) -> dict[str, Any]:
    """`values` with what the overlay says otherwise, key by key."""
    merged = copy.deepcopy(values)
    for key, value in overlay.items():
        inner = merged.get(key)
        merged[key] = merge(inner, value) if isinstance(inner, dict) and isinstance(value, dict) else value
    return merged


def changes(before: dict[str, Any], after: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """The keys, as `block.key`, that `after` has otherwise or more than `before`; with None, those that it lacks."""
    yield from ((f"{prefix}{key}", None) for key in before if key not in after)
    for key, value in after.items():
        if key not in before:
            yield f"{prefix}{key}", value
        elif isinstance(value, dict) and isinstance(before[key], dict):
            yield from changes(before[key], value, f"{prefix}{key}.")
        elif value != before[key]:
            yield f"{prefix}{key}", value


def describe(name: str) -> str:
    """What a preset is, what it downloads, and roughly what it costs."""
    values, about = read(name)
    settings = params.parse(values)
    lines = [f"{name}: {about.get('title', '')}"]
    if "licence" in about:
        lines.append(f"licence: {about['licence']}")
    if "yourself" in about:
        lines.append(f"you have to provide: {about['yourself']}")
    for path in settings.fetch:
        there = "" if Path(path).exists() else f", about {about['download'][path]} MB"
        lines.append(f"download: {fetch.plan(path, settings).sentence}{there}")
    if "gflop" in about:
        evaluations, hours = cost.network_evaluations(settings), cost.gpu_hours(settings, about["gflop"])
        most = sorted(evaluations.items(), key=lambda part: -part[1])
        lines += [
            "network evaluations: " + ", ".join(f"{part} {count / 1e6:.2f}" for part, count in most) + " million",
            f"GPU time: about {hours:.1f} hours for a network of {about['gflop']} GFLOP per evaluation, at 50 TFLOP/s",
            f"disk: {cost.sample_bytes(settings, about['image']) / 1e9:.1f} GB of samples, once more in DVC's cache, "
            f"and {sum(about['download'].values()) / 1e3:.1f} GB of downloads",
        ]
    return "\n".join(lines)


def switch(name: str, target: Path = Path(PARAMS)) -> Switch:
    """Make a preset the project's params.yaml. What the user had changed there is kept, but for what belongs to the
    model. A file that is not just what a preset gives is also kept beside it.

    Raises UserError, and leaves all as it was, if the user's changes do not go with the preset.
    """
    new, _ = read(name)
    before = target.read_bytes() if target.exists() else None
    own: list[tuple[str, Any]] = []
    origin, unread = name, None
    if before is not None:
        try:
            origin, own = _own_changes(target)
        except UserError as error:
            unread = str(error)
    kept: dict[str, Any] = {}
    left_out: dict[str, Any] = {}
    for key, value in own:
        belongs = any(key == part or key.startswith(f"{part}.") for part in OF_THE_MODEL)
        (left_out if belongs else kept)[key] = value
    for key, value in kept.items():
        _put(new, key, value)
    try:
        params.parse(new, target.parent)
    except UserError as error:
        raise UserError(f"{target}: your changes do not go with the preset {name} ({error}), so nothing was switched; "
                        "undo that change and try again") from None  # fmt: skip
    backup = None
    if before is not None and before != render.params_yaml(read(origin)[0]).encode():
        backup = _free_name(target, name)
        with atomic(backup) as temporary:
            temporary.write_bytes(before)
    write_text(target, render.params_yaml(new))
    return Switch(kept, left_out, backup, unread)


def _own_changes(path: Path) -> tuple[str, list[tuple[str, Any]]]:
    """The preset that a parameter file was made from, and what the file has otherwise.

    That preset is the one of its model's name or, where there is none of that name, the one that it is nearest to.

    Raises UserError for a file that is wrong.
    """
    values = params.load(path).model_dump(exclude_none=True)
    name = values["model"]["name"]
    origins = [name] if name in names() else names()
    own = [(origin, list(changes(read(origin)[0], values))) for origin in origins]
    return min(own, key=lambda found: len(found[1]))


def _put(values: dict[str, Any], key: str, value: Any) -> None:
    """Set `block.key` in place; None takes it out."""
    *blocks, last = key.split(".")
    for block in blocks:
        values = values.setdefault(block, {})
    if value is None:
        values.pop(last, None)
    else:
        values[last] = value


def _free_name(target: Path, name: str) -> Path:
    suffixes = ("", *(f"-{n}" for n in range(2, 10**6)))
    places = (target.with_name(f"params.before-{name}{suffix}.yaml") for suffix in suffixes)
    return next(place for place in places if not place.exists())
