"""Every command with every argument that is wrong: one sentence, exit code not 0, no traceback, no file."""

import itertools
import shutil

import click
import pytest
from click.testing import CliRunner
from support.pipeline import ROOT

from s4spipe.commands.cli import main
from s4spipe.runtime.errors import LONGEST

WRONG = ["", "absent", "empty.json", "binary.json", "text.json", "list.json", "folder", "params.yaml", "-1", "a/b",
         "a\nb", "é", "x" * 5000, "/", "~", "..", "null"]  # fmt: skip


@pytest.fixture
def project(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    shutil.copy(ROOT / "params.yaml", tmp_path)
    (tmp_path / "folder").mkdir()
    (tmp_path / "empty.json").touch()
    (tmp_path / "binary.json").write_bytes(bytes(range(256)))
    (tmp_path / "text.json").write_text("hello")
    (tmp_path / "list.json").write_text("[1, {}]")
    return tmp_path


def arguments(name):
    """Wrong arguments of a command, of all lengths; `preset` and `estimate` alone are right."""
    count = sum(isinstance(parameter, click.Argument) for parameter in main.commands[name].params)
    given = [(wrong,) * length for wrong in WRONG for length in range(1, count + 2)]
    if name == "sample":
        given += [(wrong, "sheet.png") for wrong in WRONG]
        given += [("absent", "sheet.png", option, "x") for option in ("--count", "--seed")]
    if name == "export":
        given += [*itertools.product(["s4s", *WRONG], ["5"], ["out", "folder"]), ("s4s", "five", "out")]
    return given + ([()] if name not in ("preset", "estimate") else [])


@pytest.mark.parametrize("name", main.commands)
def test_wrong_arguments_are_told(name, project):
    before = sorted(project.rglob("*"))
    for given in arguments(name):
        done = CliRunner().invoke(main, [name, *given])
        assert isinstance(done.exception, SystemExit), (given, done.exception)
        assert done.exit_code != 0
        (sentence,) = [line for line in done.output.splitlines() if line.startswith("Error: ")]
        assert "Usage" in done.output or len(sentence) <= LONGEST + len("Error: ")
    assert sorted(project.rglob("*")) == before


@pytest.mark.parametrize("content", [b"", b"nfe: [", bytes(range(256)), b"[1]", b"nfe: 0x" + b"f" * 5000])
def test_a_wrong_params_yaml_is_told_by_every_command_that_reads_it(content, project):
    (project / "params.yaml").write_bytes(content)
    for command in (["estimate"], ["export", "s4s", "5", "out"], ["diff", "workspace", "HEAD"]):
        done = CliRunner().invoke(main, command)
        assert isinstance(done.exception, SystemExit), (command, done.exception)
        (sentence,) = done.output.splitlines()
        assert sentence.startswith("Error: ")
        assert "params.yaml: " in sentence
