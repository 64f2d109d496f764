"""Parameter files of published models, and switching to one."""

from pathlib import Path

from ruamel.yaml import YAML

from s4spipe import cost, fetch
from s4spipe.errors import unknown
from s4spipe.params import Params, load

FOLDER = Path("presets")
ABOUT = FOLDER / "about.yaml"


def names() -> list[str]:
    return sorted(path.stem for path in FOLDER.glob("*.yaml") if path != ABOUT)


def read(name: str) -> tuple[Params, dict]:
    """A preset's checked parameters, and what is known about its model. Raises UserError for an unknown name."""
    if name not in names():
        raise unknown("preset", name, names())
    return load(FOLDER / f"{name}.yaml"), YAML(typ="safe").load(ABOUT).get(name, {})


def describe(name: str) -> str:
    """What a preset is, what it will download, and about what it costs."""
    params, about = read(name)
    lines = [f"{name}: {about.get('title', '')}"]
    if "licence" in about:
        lines.append(f"licence: {about['licence']}")
    if "yourself" in about:
        lines.append(f"to be put there by you: {about['yourself']}")
    for path in params.fetch:
        size = about["download"][path]
        there = "" if Path(path).exists() else f", about {size} MB"
        lines.append(f"download: {fetch.plan(path, params).sentence}{there}")
    if "gflop" in about:
        evaluations, hours = cost.network_evaluations(params), cost.gpu_hours(params, about["gflop"])
        most = sorted(evaluations.items(), key=lambda part: -part[1])
        lines += [
            "network evaluations: " + ", ".join(f"{part} {count / 1e6:.2f}" for part, count in most) + " million",
            f"GPU time: about {hours:.1f} hours for a network of {about['gflop']} GFLOP per evaluation, at 50 TFLOP/s",
            f"disk: {cost.sample_bytes(params, about['image']) / 1e9:.1f} GB of samples, once more in DVC's cache, and "
            f"{sum(about['download'].values()) / 1e3:.1f} GB of downloads",
        ]
    return "\n".join(lines)


def switch(name: str, target: Path = Path("params.yaml")) -> Path | None:
    """Make a preset the project's params.yaml. If the file there was none of the presets, it is kept beside it.

    Returns where it is kept.
    """
    read(name)
    kept, now = None, target.read_bytes() if target.exists() else None
    if now is not None and now not in {(FOLDER / f"{known}.yaml").read_bytes() for known in names()}:
        places = (
            target.with_name(f"params.before-{name}{suffix}.yaml")
            for suffix in ("", *(f"-{n}" for n in range(2, 10**6)))
        )
        kept = next(place for place in places if not place.exists())
        target.rename(kept)
    temporary = target.with_name(f".{target.name}.tmp")
    temporary.write_bytes((FOLDER / f"{name}.yaml").read_bytes())
    temporary.replace(target)
    return kept
