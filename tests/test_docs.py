"""The commands in README.md and docs/ are run as they are, except for sizes, places and names."""

import json
import re
import shlex
import subprocess
import sys
import time
from pathlib import Path

import pytest
from ruamel.yaml import YAML
from support import quick_python
from support.pipeline import ROOT, TINY, edit, ran, run

from s4spipe.pipeline import params, presets, render
from s4spipe.sampling.tableau import Tableau
from s4spipe.scheduler import S4SScheduler

PAGES = {str(path.relative_to(ROOT)): path.read_text() for path in (ROOT / "README.md", *(ROOT / "docs").rglob("*.md"))}
BLOCKS = {name: re.findall(r"^```sh\n(.*?)^```", text, re.M | re.S) for name, text in PAGES.items()}
IN_README = {line.split("#")[0].strip() for block in BLOCKS["README.md"] for line in block.splitlines()}

DEFAULTS = "python -m s4spipe.pipeline.render"  # writes them to params.yaml
# So that a command takes seconds and finds what it names. The rest of it is run as it is.
HERE = {
    "nfe=[3,4,5,6,8,10]": "nfe=[4]' -S 'learned=[]' -S 'refined=[]",
    "'learned=[s4s_alt,gs,ld3]'": "'learned=[gs]' -S 'nfe=[3]'",
    "dvc exp run -S 'searched=[gits]'": "dvc exp run learn@digits-s4s-3 -S 'learned=[s4s]' -S 'searched=[gits]'",
    "dvc exp run -S ++learners.s4s.seed=1": "dvc exp run learn@digits-s4s-3 -S ++learners.s4s.seed=1",
    "order=3,4": "order=2,3",
    "order=4": "order=2",
    "seed=0,1": "seed=1",
    "radius=0.01,0.02,0.05": "radius=0.01",
    "--nproc-per-node 8": "--nproc-per-node 2",
    "learn@digits-s4s-5": "learn@digits-s4s-3",
    "learn@digits-s4s_alt-5": "learn@digits-s4s_alt-3",
    "export s4s_alt 5": "export s4s_alt 3",
    "dvc repro -f train_digits": "dvc repro --dry -f train_digits",  # minutes
    # Not from the tiny parameters, which do not go with it; and not the last of the page.
    "s4spipe preset cifar10              #": f"{DEFAULTS}; s4spipe preset cifar10; git checkout -q . #",
    "git commit -am": "git commit --allow-empty -am",
    "make test ": "make -n test",  # which runs this
}


@pytest.fixture
def place(project, tmp_path):
    """A user's clone of the tiny project, as `make` leaves it, with a place to push to."""
    here = tmp_path / "here"
    run(tmp_path, "git", "init", "-q", "--bare", "-b", "main", "origin")
    run(tmp_path, "cp", "-r", project, here)
    run(here, "git", "checkout", "-q", "-b", "main")
    (here / ".venv/bin").mkdir(parents=True)
    for name in ("lib", "pyvenv.cfg"):
        (here / ".venv" / name).symlink_to(Path(sys.prefix) / name)
    for program in Path(sys.prefix, "bin").iterdir():
        (here / ".venv/bin" / program.name).symlink_to(program)
    (here / ".venv/bin/python").unlink()
    (here / ".venv/bin/python").symlink_to(Path(quick_python.folder(), "python"))
    (here / ".venv/installed").touch()
    run(here, "git", "add", ".")
    run(here, "git", "commit", "-q", "-m", "a tiny run")
    run(here, "git", "remote", "add", "origin", tmp_path / "origin")
    run(here, "git", "push", "-q", "-u", "origin", "main")
    yield here
    run(here, "dvc", "queue", "stop", "--kill")


def follow(page, place):
    """Run the page's blocks one after the other; what each said."""
    said = []
    for block in BLOCKS[page]:
        lines = block.splitlines()
        if page != "README.md":  # the commands of README were run there
            lines = [line for line in lines if line.split("#")[0].strip() not in IN_README]
        script = "\n".join(lines)
        for there, here in HERE.items():
            script = script.replace(there, here)
        script = script.replace("/somewhere/store", str(place.parent / "store"))
        script = script.replace("https://github.com/you/project", str(place.parent / "origin"))
        said.append(run(place, "bash", "-euxo", "pipefail", "-c", script))
    return said


@pytest.mark.slow
def test_readme(place):
    text = PAGES["README.md"] + PAGES["docs/guide/scheduler.md"]
    programs = re.findall(r"^```python\n(import.*?)^```", text, re.M | re.S)
    assert len(programs) == 2
    for program in programs:
        run(place, sys.executable, "-c", program)
    first, presets, experiments = follow("README.md", place)
    assert "gap closed by s4s_alt" in first
    assert ran(first) == set()
    assert "params.yaml is now that of the preset cifar10" in presets
    assert experiments.count("Ran experiment") == 4


@pytest.mark.slow
def test_models(place):
    """And DVC takes every preset's parameters."""
    assert "params.yaml is now that of the preset digits" in follow("docs/guide/models.md", place)[0]
    for name in presets.names():
        (place / "params.yaml").write_text(render.params_yaml(presets.read(name)[0]))
        stages = run(place, "dvc", "status", "report")
        assert "report" in stages or "up to date" in stages


@pytest.mark.slow
def test_sweeping(place):
    """Also: two queued experiments in two workers give the same as one by one, on the code that was queued with them,
    and none makes the pairs again."""
    one, queued, shown, compared = follow("docs/guide/sweeping.md", place)
    assert one.count("Queued experiment") == 1
    assert queued.count("Queued experiment") == 2
    spoilt = place / "stages/learn.py"
    code = spoilt.read_text()
    spoilt.write_text("raise SystemExit('the code of the workspace')")
    settle(place)
    spoilt.write_text(code)
    logs = [run(place, "dvc", "queue", "logs", name) for name in names(place)]
    assert len(logs) == 1 + 2
    for log in logs:
        assert "teacher_pairs" not in ran(log)
    learned = [ran(log) & {"learn@digits-s4s-3", "learn@digits-s4s_alt-3"} for log in logs]
    assert list(map(len, learned)) == [1] * 3
    found = {}
    for row in shown_experiments(place):
        if row["learners.s4s_alt.order"].isdigit():  # of the second sweep
            assert row["learners.s4s_alt.seed"] == "1"
            found[row["learners.s4s_alt.order"]] = row["Experiment"]
    for order, name in found.items():
        edit(place, learners={"s4s_alt": {"order": int(order), "seed": 1}})
        run(place, "dvc", "repro", "-q", "learn@digits-s4s_alt-3")
        ours, theirs = ((place / "dvc.lock").read_text(), committed(place, name, "dvc.lock"))
        assert learned_solver(ours) == learned_solver(theirs)
        solver = "runs/digits/solvers/s4s_alt-3/solver.json"
        assert committed(place, name, solver) == (place / solver).read_text()
    assert len(found) == 2
    assert "s4s_alt-3" in shown
    table = [line for line in shown.splitlines() if line.startswith("  ")]
    assert len(table) == 1 + 2 + 2
    assert max(map(len, table)) <= 80
    assert "diff.html" in compared
    assert "workspace" in (place / "diff.html").read_text()
    assert "Error: nonsense: no such experiment" in run(place, "s4spipe", "diff", "main", "nonsense", ok=False)


def settle(place):
    """Wait for the queue; without a worker three times in a row, they have died (see the Makefile): start others."""
    deserted = 0
    for _ in range(120):
        status = run(place, "dvc", "queue", "status")
        if not re.search("Queued|Running", status):
            return
        deserted = deserted + 1 if "0 active, 0 idle" in status else 0
        if deserted == 3:
            run(place, "dvc", "queue", "start", "-j", "2")
            deserted = 0
        time.sleep(5)
    pytest.fail("the queue does not end")


def names(place):
    rows = [line.split() for line in run(place, "dvc", "queue", "status").splitlines()]
    return [row[0] for row in rows if "Success" in row]


def shown_experiments(place):
    import csv

    table = run(place, "dvc", "exp", "show", "--csv").splitlines()
    start = next(i for i, line in enumerate(table) if line.startswith("Experiment"))
    return [row for row in csv.DictReader(table[start:]) if row["rev"] != "workspace"]


def committed(place, name, path):
    reference = run(place, "git", "for-each-ref", "--format=%(refname)", "refs/exps").splitlines()
    (found,) = [line for line in reference if line.endswith(f"/{name}")] or ["main"]
    return subprocess.check_output(["git", "show", f"{found}:{path}"], cwd=place, text=True)


def learned_solver(lock):
    """The hashes of what S4S-Alt's learning left."""
    return [out["md5"] for out in YAML(typ="safe").load(lock)["stages"]["learn@digits-s4s_alt-3"]["outs"]]


@pytest.mark.slow
def test_several_gpus(place):
    _, launched, side_by_side = follow("docs/guide/several_gpus.md", place)
    assert "torchrun" in str(launched)
    assert "learn@digits-s4s-3" in ran(launched)
    assert side_by_side.count("didn't change, skipping") >= 2


@pytest.mark.slow
def test_sharing(place, tmp_path):
    """Also: a clone without a pull fetches what a changed evaluation needs and runs it alone; after a pull, nothing."""
    follow("docs/guide/sharing.md", place)
    run(place, "git", "push", "-q")
    bare = tmp_path / "origin"
    run(tmp_path, "git", "clone", "-q", bare, "clone")
    clone = tmp_path / "clone"
    assert ran(run(clone, "dvc", "repro", "--allow-missing", "--dry")) == set()
    edit(clone, fid={"count": 80})
    evaluations = {"evaluate_teacher@digits-teacher-6", "evaluate@digits-ddim-3", "evaluate_refined@digits-free-3"}
    evaluations |= {f"evaluate_learned@digits-{solver}-3" for solver in ("s4s", "s4s_alt")}
    assert ran(run(clone, "dvc", "repro", "--pull", "--allow-missing")) == {*evaluations, "report@digits"}
    assert (clone / "runs/digits/samples/ddim-3/images.npy").exists()
    assert not (clone / "runs/digits/pairs").exists()
    run(clone, "git", "checkout", "-q", ".")
    run(clone, "dvc", "pull", "-q")
    assert ran(run(clone, "dvc", "repro")) == set()
    assert (clone / "runs/digits/pairs").exists()

    run(tmp_path, "git", "init", "-q", "elsewhere")  # another project, and empty
    elsewhere = tmp_path / "elsewhere"
    solver = "runs/digits/solvers/s4s_alt-{}/solver.json"
    run(elsewhere, "dvc", "get", bare, solver.format(3), "-o", "by_path.json")
    run(elsewhere, "dvc", "artifacts", "get", bare, "s4s-alt-5", "-o", "by_name.json")
    assert S4SScheduler.from_tableau(elsewhere / "by_name.json").nfe == 5
    assert S4SScheduler.from_tableau(elsewhere / "by_path.json").nfe == 3
    straight = S4SScheduler.from_tableau(solver.format(5), repo=str(bare), rev="s4s-alt-5@v1.0.0")
    assert straight.tableau.to_dict() == Tableau.load(elsewhere / "by_name.json").to_dict()
    assert {"model", "pairs", "params", "s4spipe"} <= set(Tableau.load(elsewhere / "by_path.json").meta)
    fid = json.loads((place / "runs/digits/report/fid.json").read_text())["s4s_alt-3"]
    shown = run(place, "s4spipe", "show", solver.format(3))
    assert f"fid: {fid}" in shown
    assert f"samples: {TINY['sample']['count']}" in shown


def test_every_page_with_commands_of_its_own_is_followed():
    tests = {name.removeprefix("test_") for name in globals() if name.startswith("test_")}
    own = {name for name, blocks in BLOCKS.items() for block in blocks for line in block.splitlines()
           if name == "README.md" or line.split("#")[0].strip() not in IN_README}  # fmt: skip
    assert {Path(name).stem.lower() for name in own} <= tests


def inline():
    """Commands, and arguments of `dvc exp run`, in the text; lists of several values are for a queue."""
    for name, text in PAGES.items():
        prose = re.sub(r"^```.*?^```", "", text, flags=re.M | re.S)
        for code in re.findall(r"`([^`\n]+)`", prose):
            known = re.match(r"(dvc exp run|dvc repro|dvc commit|python -m|s4spipe|-S) \S", code)
            if known and "..." not in code and "],[" not in code:
                yield pytest.param(code, id=f"{name}: {code}")


@pytest.mark.parametrize("command", list(inline()))
def test_commands_in_the_text_name_what_is_there(command, tmp_path):
    """They take hours, or make every number again, so they are not run. Their parameters, stages and modules exist."""
    words = [word for word in shlex.split(command) if word != "\\"]
    if words[:2] == ["python", "-m"]:
        assert (ROOT / f"{words[2].replace('.', '/')}.py").exists()
        return
    if words[0] == "s4spipe":
        from s4spipe.commands.cli import main

        assert words[1] in main.commands
        return
    settings = YAML(typ="safe").load(ROOT / "params.yaml")
    for option, value in zip(words, words[1:], strict=False):
        if option == "-S":
            key, _, given = value.partition("=")
            *blocks, last = key.removeprefix("++").split(".")
            block = settings
            for name in blocks:
                block = block[name]
            assert key.startswith("++") or last in block  # DVC sets no new key without ++
            block[last] = YAML(typ="safe").load(given)
    YAML(typ="safe").dump(settings, tmp_path / "params.yaml")
    params.load(tmp_path / "params.yaml")
    stages = YAML(typ="safe").load(ROOT / "dvc.yaml")["stages"]
    if words[0] == "dvc" and words[1] != "exp":
        targets = [word for word in words[2:] if not word.startswith("-")]
        assert {target.split("@")[0] for target in targets} <= set(stages) | {"STAGE"}
