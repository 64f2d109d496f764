"""Text and places: every text is UTF-8 whatever the machine's locale, and a project may lie anywhere."""

import ast
import json
import os
import subprocess
import sys

import pytest
from click.testing import CliRunner
from support import finished, imports
from support.pipeline import GIT, ROOT
from support.problems import NOISES

from s4spipe.commands.cli import main
from s4spipe.pipeline import params
from s4spipe.runtime.errors import UserError
from s4spipe.runtime.files import read_json, read_lines
from s4spipe.solvers import registry, timesteps
from stages import report

ASCII = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0", "PYTHONPATH": str(ROOT)}
PROMPTS = ["un café à Zürich", "λ-calculus ☃", "two\u2028parts of one line"]
BOM = b"\xef\xbb\xbf"


def without_encoding(call):
    """Whether a call opens a text, of a file or of a process, in the encoding of the machine."""
    name = call.func.attr if isinstance(call.func, ast.Attribute) else getattr(call.func, "id", "")
    given = {keyword.arg: ast.unparse(keyword.value) for keyword in call.keywords}
    if "encoding" in given:
        return False
    if name in ("read_text", "write_text"):
        return isinstance(call.func, ast.Attribute)
    if name in ("open", "fdopen", "TextIOWrapper", "NamedTemporaryFile"):
        modes = [ast.unparse(argument) for argument in call.args] + [given.get("mode", "")]
        return "b" not in "".join(mode.strip("'") for mode in modes if set(mode.strip("'")) <= set("rwxab+"))
    return "True" in (given.get("text"), given.get("universal_newlines"))


@pytest.mark.parametrize(
    ("code", "open_in_any"),
    [
        ("open(p)", True),
        ("open(p, 'w')", True),
        ("open(p, 'rb')", False),
        ("open(p, mode='wb')", False),
        ("open(p, encoding='utf-8')", False),
        ("p.open()", True),
        ("p.read_text()", True),
        ("p.write_text(t)", True),
        ("p.write_text(t, encoding='utf-8')", False),
        ("subprocess.run(c, text=True)", True),
        ("subprocess.run(c)", False),
    ],
)
def test_calls_that_leave_the_encoding_to_the_machine_are_known(code, open_in_any):
    assert without_encoding(ast.parse(code).body[0].value) is open_in_any


def test_every_text_is_opened_in_a_named_encoding():
    for path in imports.modules("s4spipe", "stages", "benchmarks", "tests/support"):
        for node in ast.walk(imports.parse(path)):
            if isinstance(node, ast.Call) and not ast.unparse(node.func).startswith(("Image.", "archive.", "np.")):
                assert not without_encoding(node), f"{path}:{node.lineno}: {ast.unparse(node)}"


@pytest.mark.parametrize("start", [b"", BOM])
@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_what_a_user_writes_may_come_from_any_editor(start, end, tmp_path):
    def write(name, text):
        (tmp_path / name).write_bytes(start + text.replace("\n", end).encode())
        return tmp_path / name

    assert read_lines(write("prompts.txt", "\n".join(PROMPTS) + "\n\n"), "prompts") == PROMPTS
    assert read_json(write("mine.json", '{"5":\n [3, 2, 1]}')) == {"5": [3, 2, 1]}
    text = (ROOT / "params.yaml").read_text(encoding="utf-8")
    assert params.load(write("params.yaml", text)) == params.load(ROOT / "params.yaml")


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("p.json", '"a cat"\n'),
        ("p.JSONL", '{"prompt": "a cat"}\n'),
        ("p.csv", "prompt,kind\na cat,animal\n"),
        ("p.tsv", "prompt\tkind\n"),
        ("p.yaml", "- a cat\n"),
        ("p.txt", '[\n "a cat"\n]\n'),
        ("p", '\n{"prompt": "a cat"}\n'),
    ],
)
def test_prompts_in_json_or_in_a_table_are_refused(name, text, tmp_path):
    (tmp_path / name).write_text(text, encoding="utf-8")
    with pytest.raises(UserError, match=r": JSON or a table, .*; write prompts as plain text, one per line"):
        read_lines(tmp_path / name, "prompts")


def test_prompts_in_another_encoding_are_refused(tmp_path):
    (tmp_path / "p.txt").write_bytes("ein schöner Hund".encode("latin-1"))
    with pytest.raises(UserError, match=r"p\.txt: not UTF-8 text \(at byte 7\); save it as UTF-8"):
        read_lines(tmp_path / "p.txt", "prompts")


def in_ascii(folder, *arguments):
    """What a Python program says in a terminal that knows ASCII only."""
    done = subprocess.run(
        [sys.executable, *arguments], cwd=folder, env=os.environ | ASCII, capture_output=True, check=False
    )
    assert done.returncode == 0, done.stderr.decode()
    return done.stdout.decode()


def test_an_ascii_terminal_reads_prompts_and_shows_a_solver(tmp_path):
    (tmp_path / "p.txt").write_text("\n".join(PROMPTS), encoding="utf-8")
    read = "import sys; print(ascii(sys.stdout.encoding)); from s4spipe.runtime.files import *"
    encoding, lines = in_ascii(tmp_path, "-c", f"{read}; print(ascii(read_lines('p.txt', 'prompts')))").splitlines()
    assert encoding in ("'ascii'", "'ANSI_X3.4-1968'", "'us-ascii'", "'646'")
    assert ast.literal_eval(lines) == PROMPTS
    noise = NOISES["ve"]
    meta = {"source": "Zürich λ"}
    registry.build("ddim", noise, timesteps.build("edm", noise, 3), meta).save(tmp_path / "é.json")
    said = in_ascii(tmp_path, "-m", "s4spipe", "show", "é.json")
    assert said.startswith("ddim: 3 evaluations")
    assert "Zürich λ" in said  # click shows UTF-8 where Python would fail


@pytest.mark.slow
def test_an_ascii_terminal_writes_the_same_report(tmp_path, monkeypatch):
    runs = []
    for name in ("plain", "a folder é λ"):
        (tmp_path / name).mkdir()
        runs.append(finished.make(tmp_path / name, learned=["s4s"], refined=[]))
    in_ascii(tmp_path / "a folder é λ", "-m", "stages.report")
    monkeypatch.chdir(tmp_path / "plain")
    result = CliRunner().invoke(report.main)
    assert result.exit_code == 0, result.output
    plain, other = (run.places.report for run in runs)
    for file in ("report.html", "table.md", "fid.csv", "figures/samples-5.png"):
        assert (plain / file).read_bytes() == (other / file).read_bytes()
    assert not (plain / "report.html").read_bytes().isascii()


@pytest.mark.parametrize("dvc_is", ["at the top", "in the project"])
def test_revisions_are_compared_in_a_subfolder_of_a_repository(dvc_is, tmp_path, monkeypatch):
    top, project = tmp_path, tmp_path / "code/a project é."
    project.mkdir(parents=True)
    run = finished.make(project, learned=["s4s"], refined=[])
    (top / "params.yaml").write_text("another: project\n", encoding="utf-8")

    def shell(folder, *command):
        subprocess.run(command, cwd=folder, check=True, capture_output=True, env=os.environ | GIT)

    shell(top, "git", "init", "-q")
    inside = ["--subdir"] if dvc_is == "in the project" else []
    shell(project if inside else top, sys.executable, "-m", "dvc", "init", "-q", *inside)
    shell(top, "git", "add", ".")
    shell(top, "git", "commit", "-qm", "one")
    ideal = run.places.evaluation(run.teacher, "metrics.json")
    numbers = json.loads(ideal.read_text(encoding="utf-8"))
    ideal.write_text(json.dumps(numbers | {"fid": 0.2}), encoding="utf-8")
    monkeypatch.chdir(project)
    result = CliRunner().invoke(main, ["diff", "HEAD", "workspace", "a page é.html"])
    assert result.output == "a page é.html\n"
    shown = (project / "a page é.html").read_text(encoding="utf-8")
    assert "<td>teacher</td><td>20</td><td>0.100</td><td>0.200</td><td>+100.0</td>" in shown
    assert "no such experiment" in CliRunner().invoke(main, ["diff", "HEAD", "v9"]).output
