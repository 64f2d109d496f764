"""Every dvc.yaml of the project says the truth about the code: a stage depends on the modules that it can load, and on
no others."""

import ast
import shlex
import shutil
import subprocess
from functools import cache
from itertools import zip_longest
from pathlib import Path

import pytest
from dvc.repo import Repo
from ruamel.yaml import YAML
from support import imports
from support.imports import ROOT

from s4spipe import models
from s4spipe.features import FOR_DISTANCE, FOR_FID
from s4spipe.pipeline import presets

RIVALS = "benchmarks/rivals"
# These decide no number, and a change in them should re-run nothing.
STAGE = "s4spipe/pipeline/stage.py"
PLUMBING = {
    "s4spipe/runtime/checks.py",  # refuses what is wrong, and changes nothing
    "s4spipe/runtime/errors.py",  # the sentences for mistakes
    "s4spipe/runtime/files.py",  # reads and writes what it is given, whole or not at all
    "s4spipe/runtime/distributed.py",  # divides work; the results are those of one process, to rounding
    "s4spipe/runtime/scratch.py",  # keeps what a stage has done; its entries go by a fingerprint of all code
    "s4spipe/runtime/ahead.py",  # does the same work earlier
    "s4spipe/runtime/user_code.py",  # imports the user's own function, and calls it
    "s4spipe/pipeline/params.py",  # refuses parameters; those that it lets through are dependencies themselves
    "s4spipe/pipeline/schema.py",  # types, and defaults that params.yaml spells out
    "s4spipe/pipeline/fields.py",  # those types
    "s4spipe/pipeline/layout.py",  # paths, which dvc.yaml has too
    f"{RIVALS}/params.py",  # reads params.yaml
    "stages/__init__.py",  # refuses files that hide a library
    "s4spipe/__init__.py",  # public names, of which stages use the version
    STAGE,  # starts processes and ends them; what its other functions load is followed, function by function
}
# These import a package by a name that the parameters give.
MODELS, NETWORKS = BY_NAME = ("s4spipe/models/base/loading.py", "s4spipe/features/base/loading.py")
OF_THE_USER = "s4spipe/runtime/user_code.py"


@cache
def reached(module: str, kinds: frozenset[str], networks: frozenset[str]) -> frozenset[str]:
    """The files of all modules that importing and running a stage's module can load, wherever the imports stand.

    Args:
        kinds: of models that it may load.
        networks: that look at images, which it may load.

    The packages above an imported module are loaded with it; those that hold imports alone are nothing to it.
    """
    chosen = {MODELS: {f"s4spipe/models/{kind}/__init__.py" for kind in kinds},
              NETWORKS: {f"s4spipe/features/{network}/__init__.py" for network in networks}}  # fmt: skip
    waiting, seen = [module], set()
    while waiting:
        path = waiting.pop()
        if path in seen or path in PLUMBING:
            continue
        seen.add(path)
        waiting += imports.imports(path)
        waiting += [above for above in imports.packages_above(path) if not imports.only_imports(above)]
        if path in BY_NAME:
            waiting += chosen[path]
        if functions := imports.used(path, STAGE):
            waiting += imports.behind(STAGE, functions)
        if (ROOT / path).with_suffix(".csv").exists():  # data of the module
            seen.add(str(Path(path).with_suffix(".csv")))
    return frozenset(path for path in seen if path.endswith(".csv") or not imports.only_imports(path))


def covered(paths: frozenset[str], deps: set[str]) -> set[str]:
    """Those of the paths that are a dependency, or lie in one."""
    return {path for path in paths if path in deps or any(str(above) in deps for above in Path(path).parents)}


@cache
def holds_code(path: Path) -> bool:
    return path.suffix == ".py" or any(path.rglob("*.py"))


class Stage:
    """A stage as DVC reads it: its module, the code among its dependencies, as paths from the project's root, and the
    blocks of parameters that it depends on."""

    def __init__(self, stage, folder: Path):
        words = shlex.split(stage.cmd)
        self.name, self.module = stage.name, imports.file_of(words[words.index("-m") + 1])
        paths = {(folder / dep.def_path).resolve() for dep in stage.deps}
        self.code = {str(path.relative_to(ROOT)) for path in paths if holds_code(path)}
        self.blocks = {key.split(".")[0] for dep in stage.deps for key in getattr(dep, "params", ())}

    def missing(self, kind: str, network: str) -> set[str]:
        """What the module can load with this kind of model and this network that looks at images, and does not stand
        among the dependencies."""
        needed = reached(self.module, frozenset([kind]), frozenset([network]))
        return needed - covered(needed, self.code)

    def superfluous(self) -> set[str]:
        """The dependencies that could be left out, whatever the kind and the network."""
        every = reached(self.module, frozenset(models.KINDS), frozenset([*FOR_FID, *FOR_DISTANCE]))
        there = covered(every, self.code)
        return {dep for dep in self.code if covered(every, self.code - {dep}) == there}


def stages(folder: Path, scratch: Path, **changes) -> list[Stage]:
    """Those of the dvc.yaml in `folder`, read by DVC elsewhere, with other values of some keys of its params.yaml."""
    params = YAML(typ="safe").load(folder / "params.yaml")
    YAML(typ="safe").dump(presets.merge(params, changes), scratch / "params.yaml")
    shutil.copy(folder / "dvc.yaml", scratch)
    Repo.init(str(scratch), no_scm=True)
    found = [Stage(stage, folder) for stage in Repo(str(scratch)).index.stages]
    assert {stage.name.split("@")[0] for stage in found} == set(YAML(typ="safe").load(folder / "dvc.yaml")["stages"])
    return found


VARIANTS = list(zip_longest(models.KINDS, FOR_FID, FOR_DISTANCE, fillvalue="digits"))


@pytest.mark.parametrize(("kind", "fid", "perceptual"), VARIANTS)
def test_every_stage_depends_on_exactly_the_code_that_it_can_load(kind, fid, perceptual, tmp_path):
    """For every kind of model, and every network that looks at images, of which a stage loads the one that its block of
    parameters names."""
    networks = {"fid": {"network": fid}, "perceptual": {"network": perceptual}}
    cells = {
        "fetch": ["models/unet"],
        "searched": ["gits", "dmn"],
        "statistics_for": ["dpm_v3"],
        "spanning": ["gn"],
    }  # so that no stage is without one
    for stage in stages(ROOT, tmp_path, model={"kind": kind}, **networks, **cells):
        assert not stage.missing(kind, perceptual if "perceptual" in stage.blocks else fid), stage.name
        assert not stage.superfluous(), stage.name


def test_every_stage_of_the_rivals_does_too(tmp_path):
    """Of what is loaded by its name, they load the digits'."""
    for stage in stages(ROOT / RIVALS, tmp_path, models=["digits"], seeds=[0]):
        assert not stage.missing("digits", "digits"), stage.name
        assert not stage.superfluous(), stage.name


def test_there_are_no_other_pipelines():
    tracked = subprocess.check_output(["git", "ls-files"], cwd=ROOT, text=True).splitlines()
    assert [path for path in tracked if Path(path).name == "dvc.yaml"] == [f"{RIVALS}/dvc.yaml", "dvc.yaml"]


def test_modules_are_loaded_by_name_only_where_the_tests_above_know_of_it():
    def by_name(path):
        nodes = ast.walk(imports.parse(path))
        names = {getattr(node, "id", None) or getattr(node, "attr", None) for node in nodes}
        return names & {"import_module", "__import__"}

    found = {path for path in imports.modules("s4spipe", "stages", "benchmarks") if by_name(path)}
    assert found == {*BY_NAME, OF_THE_USER}
