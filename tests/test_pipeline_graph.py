"""dvc.yaml says the truth about the code: every module that a stage can reach is among its dependencies."""

import ast
import shlex
from pathlib import Path

import pytest
from dvc.repo import Repo

ROOT = Path(__file__).parent.parent
# These carry parameters, files and errors; they make no number, and a change in them should re-run nothing.
PLUMBING = {f"s4spipe/{name}.py" for name in ("__init__", "errors", "files", "params", "stage")}


def modules(path: str, seen: set[str] | None = None) -> set[str]:
    """The project's files that importing `path` can load, wherever in the file the import stands."""
    seen = set() if seen is None else seen
    if path in seen:
        return seen
    seen.add(path)
    names = set()
    for node in ast.walk(ast.parse((ROOT / path).read_text())):
        if isinstance(node, ast.ImportFrom) and node.module:
            names |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
        elif isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
    for name in names:
        base = name.replace(".", "/")
        for candidate in (f"{base}.py", f"{base}/__init__.py"):
            if (
                name.split(".")[0] in ("s4spipe", "stages", "benchmarks")
                and (ROOT / candidate).exists()
                and candidate not in PLUMBING
            ):
                modules(candidate, seen)
    return seen


@pytest.fixture(scope="module")
def stages():
    return {stage.name: stage for stage in Repo(str(ROOT)).index.stages}


def test_every_stage_depends_on_exactly_the_modules_that_it_can_load(stages):
    for name, stage in stages.items():
        module = shlex.split(stage.cmd)[2].replace(".", "/") + ".py"
        declared = {dep.def_path for dep in stage.deps if dep.def_path.endswith(".py")}
        needed = {path for path in modules(module) if (ROOT / path).read_text().strip()}
        assert declared == needed, f"{name}: missing {sorted(needed - declared)}, too many {sorted(declared - needed)}"
