"""The project's layout: which package may import which, and how large its parts may be."""

import ast
import subprocess
from graphlib import TopologicalSorter
from pathlib import Path

import pytest
from support import imports
from support.imports import ROOT

# What is directly in s4spipe/, each importing only what stands before it.
ORDER = (
    *("runtime", "models", "noise", "sampling", "solvers", "classical", "scheduler", "features", "learning"),
    *("training", "evaluation", "pipeline", "report", "commands", "__main__"),
)
LIBRARY = imports.modules("s4spipe")
CODE = imports.modules("s4spipe", "stages")


def place(path: str) -> str:
    """Where in s4spipe/ a module is: the subpackage, or the module itself."""
    return Path(path).relative_to("s4spipe").parts[0].removesuffix(".py")


def lines(path: str) -> int:
    return len((ROOT / path).read_text(encoding="utf-8").splitlines())


def test_imports_go_one_way():
    for path in LIBRARY:
        if path == "s4spipe/__init__.py":
            continue
        above = ORDER[: ORDER.index(place(path)) + 1]
        for other in imports.imports(path):
            assert place(other) in above, f"{path} imports {other}"


def test_no_module_imports_itself_through_others():
    """Wherever the imports stand: one within a function makes a circle too. Raises CycleError, which names it."""
    tuple(TopologicalSorter({path: imports.imports(path) for path in CODE}).static_order())


def test_the_library_imports_no_stage_and_no_benchmark():
    for path in CODE:
        for other in imports.imports(path):
            assert other.startswith("s4spipe/"), f"{path} imports {other}"


def test_the_package_has_few_parts():
    folder = ROOT / "s4spipe"
    parts = {path.stem for path in (*folder.glob("*.py"), *(init.parent for init in folder.glob("*/__init__.py")))}
    assert parts == {*ORDER, "__init__"}
    assert len(parts) <= 16


@pytest.mark.parametrize("folder", ["s4spipe", "stages", "benchmarks", "tests"])
def test_modules_are_short(folder):
    assert {path: lines(path) for path in imports.modules(folder) if lines(path) > 350} == {}


def test_functions_have_few_parameters():
    for path in CODE:
        for node in ast.walk(imports.parse(path)):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
                given = [p.arg for p in (*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs)]
                own = [name for name in given if name not in ("self", "cls")]
                assert len(own) <= 8, f"{path}:{node.lineno} takes {', '.join(own)}"


def test_one_module_knows_where_files_lie():
    folders = ("runs", "models/", "inputs/", "data/")
    for path in LIBRARY:
        for node in ast.walk(imports.parse(path)):
            if not (isinstance(node, ast.Constant) and isinstance(node.value, str)):
                continue
            is_path = node.value.startswith(folders) and len(node.value.split()) == 1
            assert not is_path or path == "s4spipe/pipeline/layout.py", f"{path}:{node.lineno}: {node.value}"


def test_the_pipeline_is_short():
    assert lines("dvc.yaml") <= 300
    assert lines("dvc.lock") <= 2200


def test_the_project_has_few_folders():
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    tracked = [Path(path) for path in listed.split("\0") if (ROOT / path).is_file()]
    folders = {path.parts[0] for path in tracked if len(path.parts) > 1 and not path.parts[0].startswith(".")}
    assert len(folders) <= 10, sorted(folders)
