"""Files appear whole or not at all; a full disk and a folder that cannot be written are told in one sentence."""

import errno
import os
import re
import resource
import shutil

import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from support import finished, locking
from support.forks import FORK

from s4spipe.commands.cli import main
from s4spipe.evaluation import thumbnails
from s4spipe.report import figures
from s4spipe.runtime import errors, files
from s4spipe.runtime.errors import UserError
from s4spipe.runtime.scratch import SCRATCH, Scratch, alone

NUMBERS = np.arange(40_000, dtype=np.uint8).reshape(40, 1, 25, 40)
NOISY = np.random.default_rng(0).integers(0, 256, (9, 3, 64, 64), "uint8")


def drawn():
    figure, axes = plt.subplots()
    axes.plot(np.random.default_rng(0).standard_normal(5000))
    return figure


# What writes a file of more than 10 kB, and the name of that file.
WRITERS = {
    "text": lambda path: files.write_text(path, "a line\n" * 10_000),
    "json": lambda path: files.write_json(path, list(range(10_000))),
    "tensors": lambda path: files.write_tensors(path, {"x": torch.ones(10_000)}),
    "array": lambda path: files.write_array(path, NUMBERS),
    "arrays": lambda path: files.write_arrays(path, iter(np.split(NUMBERS, 8)), len(NUMBERS)),
    "figure": lambda path: figures.save(drawn(), path.with_suffix(".png")),
    "thumbnails": lambda path: thumbnails.write(path, NOISY),
    "progress": lambda path: Scratch("it").save("done", {"x": torch.ones(10_000)}),
}  # fmt: skip


@pytest.mark.parametrize("value", [float("nan"), [1.0, {"a": float("inf")}]])
def test_a_number_that_is_not_finite_is_not_written_as_json(value, tmp_path):
    with pytest.raises(UserError, match="x.json: not written, since a number in it is not finite"):
        files.write_json(tmp_path / "x.json", value)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("text", ['{"5": [2, 1], "6": [], "5": [3, 1]}', '[{"a": {"5": 1, "5": 1}}]'])
def test_a_key_that_is_there_twice_is_named(text, tmp_path):
    path = tmp_path / "mine.json"
    path.write_text(text)
    with pytest.raises(UserError, match="mine.json: not valid JSON .the key '5' is there 2 times.; correct it"):
        files.read_json(path)
    path.write_text('{"5": {"5": 1}, "": {}}')
    assert files.read_json(path) == {"5": {"5": 1}, "": {}}


@pytest.fixture
def room():
    """Limits the size of every file that is written, as a full disk does in the middle of one."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    yield lambda size: resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.parametrize("size", [0, 10, 5_000])
@pytest.mark.parametrize("writer", WRITERS)
def test_a_full_disk_is_told_and_the_old_file_is_kept(writer, size, room, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write = WRITERS[writer]
    write(tmp_path / "out")
    (path,) = (path for path in tmp_path.rglob("*") if path.is_file())
    whole = path.read_bytes()
    assert len(whole) > 10_000
    path.write_bytes(b"old")
    room(size)
    with pytest.raises(UserError, match=rf"^\S*{re.escape(path.name)}: .*; make room on its disk and run again"):
        write(tmp_path / "out")
    assert [left for left in tmp_path.rglob("*") if left.is_file()] == [path]
    assert path.read_bytes() == b"old"
    room(resource.RLIM_INFINITY)
    write(tmp_path / "out")
    assert path.read_bytes() == whole


@pytest.mark.parametrize(
    ("number", "helps"),
    {
        errno.ENOSPC: "make room on its disk",
        errno.EDQUOT: "make room on its disk",
        errno.EROFS: "give yourself the right",
        errno.EACCES: "give yourself the right",
        errno.ENOTDIR: "move away the file",
    }.items(),
)
def test_what_the_system_refuses_is_told_with_what_helps(number, helps):
    with (
        pytest.raises(UserError, match=rf"^runs/x: {os.strerror(number)}; {helps}.* and run again"),
        errors.explained(),
    ):
        raise OSError(number, os.strerror(number), "runs/x")
    with pytest.raises(UserError, match="^out: "), errors.explained("out"):
        raise OSError(number, os.strerror(number))


def test_other_errors_stay_what_they_are():
    with pytest.raises(OSError, match="timed out"), errors.explained("out"):
        raise TimeoutError(errno.ETIMEDOUT, "timed out")
    with pytest.raises(UserError, match="^a mistake$"), errors.explained("out"):
        raise UserError("a mistake")


def test_a_file_in_the_place_of_a_folder_is_named(tmp_path):
    (tmp_path / "runs").touch()
    with pytest.raises(UserError, match=r"runs: .*move away the file that stands in the place of a folder"):
        files.write_text(tmp_path / "runs/table.md", "")
    (tmp_path / "table.md").mkdir()
    with pytest.raises(UserError, match=r"table\.md: .*move away the folder that stands in the place of a file"):
        files.write_text(tmp_path / "table.md", "")


def test_what_killed_processes_left_of_a_file_is_removed_with_the_next_and_nothing_else(tmp_path):
    for name in (".a.json.tmp.json", ".a.json.tmp-0123abcd.json", ".b.json.tmp-0123abcd.json", "a.json.tmp"):
        (tmp_path / name).touch()
    files.write_json(tmp_path / "a.json", 1)
    assert {path.name for path in tmp_path.iterdir()} == {"a.json", ".b.json.tmp-0123abcd.json", "a.json.tmp"}


def test_of_two_writers_at_once_the_second_ends_whole_and_the_first_says_so(tmp_path):
    path = tmp_path / "out"

    def write_while_another_does():
        with files.atomic(path) as first:
            first.write_text("the first's ")
            files.write_text(path, "the second's")
            assert path.read_text() == "the second's"

    with pytest.raises(UserError, match="another process wrote it at the same time"):
        write_while_another_does()
    assert path.read_text() == "the second's"
    assert list(tmp_path.iterdir()) == [path]


@given(arrays.arrays(st.sampled_from(["u1", "<f4", "<f8", "<i8"]), st.tuples(*[st.integers(1, 4)] * 3)), st.data())
def test_an_array_written_in_chunks_has_the_bytes_that_numpy_writes(tmp_path_factory, array, data):
    folder = tmp_path_factory.mktemp("arrays")
    cuts = sorted(data.draw(st.lists(st.integers(1, len(array)), max_size=3, unique=True)))
    files.write_arrays(folder / "chunks.npy", (part for part in np.split(array, cuts) if len(part)), len(array))
    np.save(folder / "numpy.npy", array)
    assert (folder / "chunks.npy").read_bytes() == (folder / "numpy.npy").read_bytes()
    shutil.rmtree(folder)


def test_too_few_rows_are_not_taken_for_an_array(tmp_path):
    with pytest.raises(ValueError, match="8 rows instead of 9"):
        files.write_arrays(tmp_path / "out.npy", [np.zeros((4, 2)), np.zeros((4, 2))], 9)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_one_process_at_a_time_and_the_others_say_for_whom_they_wait(tmp_path):
    """Each adds one to a number in a file, a hundred times, which goes wrong as soon as two do it at once."""
    workers = [FORK.Process(target=locking.count, args=(tmp_path, 100)) for _ in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(60)
    assert [worker.exitcode for worker in workers] == [0] * 4
    assert (tmp_path / "number").read_text() == "400"
    waited_for = {line for path in tmp_path.glob("waits-*") for line in path.read_text().split()}
    assert waited_for <= {str(worker.pid) for worker in workers}
    assert waited_for
    assert list((tmp_path / SCRATCH).iterdir()) == []


def test_a_killed_process_leaves_no_lock(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    holder = FORK.Process(target=locking.hold, args=(tmp_path,))
    holder.start()
    while not (tmp_path / "held").exists():
        assert holder.is_alive()
    holder.kill()
    holder.join()
    assert [path.read_text() for path in SCRATCH.iterdir()] == [str(holder.pid)]
    waited = []
    with alone("count", waited.append):
        assert [path.read_text() for path in SCRATCH.iterdir()] == [str(os.getpid())]
        with alone("another ../name", waited.append):  # is free
            pass
    assert waited == []
    assert list(SCRATCH.iterdir()) == []


@pytest.mark.parametrize(
    ("command", "written"), [(["preset", "cifar10"], "params"), (["export", "ipndm", "5", "out"], r"\.out\.tmp")]
)
def test_a_command_tells_a_full_disk_and_leaves_all_as_it_was(command, written, room, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    finished.make(tmp_path)
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    room(100)
    done = CliRunner().invoke(main, command)
    room(resource.RLIM_INFINITY)
    assert done.exit_code == 1
    sentence = done.output.splitlines()[-1]
    assert re.fullmatch(rf"Error: {written}\S*: .*; make room on its disk and run again.*", sentence)
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before
    assert CliRunner().invoke(main, command).exit_code == 0
