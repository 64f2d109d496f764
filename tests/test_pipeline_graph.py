"""dvc.yaml says the truth about the code: every module that a stage can reach is among its dependencies."""

import ast
import shlex
from pathlib import Path

import pytest
from dvc.repo import Repo
from ruamel.yaml import YAML

from s4spipe import features, models

ROOT = Path(__file__).parent.parent
MODEL = YAML(typ="safe").load(ROOT / "params.yaml")["model"]["kind"]
# These carry parameters, files and errors; they make no number, and a change in them should re-run nothing.
PLUMBING = {f"s4spipe/{name}.py" for name in ("__init__", "errors", "files", "params", "ranks", "stage")}
# These import by a name in params.yaml, which dvc.yaml names the same way.
BY_NAME = {
    "s4spipe/models/__init__.py": models.KINDS,
    "s4spipe/features/__init__.py": {*features.FOR_FID, *features.FOR_DISTANCE},
}


def modules(path: str, seen: set[str] | None = None) -> set[str]:
    """The project's files that importing `path` can load, wherever in the file the import stands."""
    seen = set() if seen is None else seen
    if path in seen:
        return seen
    seen.add(path)
    names = set()
    for node in ast.walk(ast.parse((ROOT / path).read_text())):
        if isinstance(node, ast.ImportFrom) and node.module:
            inner = {f"{node.module}.{alias.name}" for alias in node.names}
            known = {name for name in inner if files(name)}
            names |= known if known == inner else known | {node.module}  # a package may serve for its modules alone
        elif isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
    for name in names:
        for candidate in files(name):
            if candidate not in PLUMBING:
                modules(candidate, seen)
    for name in BY_NAME.get(path, ()):
        for candidate in (Path(path).parent / f"{name}.py", *(ROOT / Path(path).parent / name).glob("*.py")):
            if (ROOT / candidate).exists():
                modules(str((ROOT / candidate).relative_to(ROOT)), seen)
    return seen


def files(name: str) -> list[str]:
    """The project's file of a module, if it is one of the project's."""
    base = name.replace(".", "/")
    ours = name.split(".")[0] in ("s4spipe", "stages", "benchmarks")
    return [path for path in (f"{base}.py", f"{base}/__init__.py") if ours and (ROOT / path).exists()]


def of_one_kind(path: str) -> bool:
    """Whether a module serves one kind of models or features alone."""
    folder, name = Path(path).parent, Path(path).stem
    return any(
        folder == Path(chooser).parent / kind or (folder, name) == (Path(chooser).parent, kind)
        for chooser, kinds in BY_NAME.items()
        for kind in kinds
    )


@pytest.fixture(scope="module")
def stages():
    return {stage.name: stage for stage in Repo(str(ROOT)).index.stages}


def test_every_stage_depends_on_exactly_the_modules_that_it_can_load(stages):
    """All it can load whatever the kinds, and of what serves one kind that of the kind in params.yaml."""
    for name, stage in stages.items():
        module = shlex.split(stage.cmd)[2].replace(".", "/") + ".py"
        deps = [dep.def_path for dep in stage.deps]
        declared = {
            str(path.relative_to(ROOT))
            for dep in deps
            if dep.startswith(("s4spipe/", "stages/")) and not dep.endswith((".css", ".js"))
            for path in ((ROOT / dep).glob("*.py") if (ROOT / dep).is_dir() else [ROOT / dep])
        }
        reached = {path for path in modules(module) if (ROOT / path).read_text().strip()}
        needed = {path for path in reached if not of_one_kind(path)}
        assert not needed - declared, f"{name}: missing {sorted(needed - declared)}"
        assert not declared - reached, f"{name}: too many {sorted(declared - reached)}"
        chosen = {
            "s4spipe/models/__init__.py": f"s4spipe/models/{MODEL}",
            "s4spipe/features/__init__.py": "s4spipe/features/",
        }
        for chooser, dep in chosen.items():
            assert chooser not in reached or any(given.startswith(dep) and given != chooser for given in deps), name
