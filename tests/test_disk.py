"""Every stage on a disk that is full, in a folder that cannot be written, and twice at once."""

import os
import shutil
import subprocess
from contextlib import contextmanager

import pytest
from support import stage_process
from support.every_stage import FORK, STAGES
from support.pipeline import edit

pytestmark = pytest.mark.slow

ROOM = (0, 0.5)  # on the disk, in shares of what the stage writes


@pytest.fixture
def disk(project, tmp_path):
    """A copy of the project on a small disk of its own."""
    disk = tmp_path / "disk"
    disk.mkdir()
    with mounted("-t", "tmpfs", "-o", "size=32m", "tmpfs", disk):
        shutil.copyfile(project / "params.yaml", disk / "params.yaml")
        for part in ("data", "inputs", "models", "runs"):
            shutil.copytree(project / part, disk / part)
        yield disk


@contextmanager
def mounted(*arguments):
    """Something that `mount` mounts; skips the test where this user may not."""
    done = mount(*arguments)
    if done.returncode:
        pytest.skip(f"no right to mount here: {done.stderr.strip()}")
    try:
        yield
    finally:
        subprocess.run(["umount", arguments[-1]], check=True)


def mount(*arguments):
    return subprocess.run(["mount", *map(str, arguments)], capture_output=True, text=True, check=False)


@contextmanager
def full(disk, room):
    """All but `room` bytes of the disk are taken."""
    free = os.statvfs(disk).f_bavail * os.statvfs(disk).f_frsize
    with open(disk / "taken", "wb") as file:
        os.posix_fallocate(file.fileno(), 0, free - room)
    yield
    (disk / "taken").unlink()


@contextmanager
def read_only(folder):
    with mounted("--bind", folder, folder):
        assert mount("-o", "remount,ro,bind", folder).returncode == 0
        yield


class Trial:
    """A stage in `folder`, and the bytes of its outs when nothing disturbs it."""

    def __init__(self, name, folder):
        self.folder, (self.command, outs, short) = folder, STAGES[name]
        edit(folder, **short)
        self.outs = [folder / out for out in outs]
        assert self.run() == (0, [])
        self.whole = self.read()

    def read(self):
        return [out.read_bytes() for out in self.outs]

    def start(self, number=0):
        said = self.folder.with_name(f"said-{number}")
        said.write_text("")
        process = FORK.Process(target=stage_process.run, args=(self.folder, *self.command), kwargs={"said": said})
        process.start()
        return process, said

    def run(self):
        """Exit status and what was said to the user."""
        process, said = self.start()
        process.join()
        return process.exitcode, said.read_text().splitlines()

    def fails(self, trouble, helps):
        """Whether the stage fails while there is `trouble`: then with one sentence, its outs as they were or whole, and
        no progress lost."""
        for out in self.outs:
            out.write_bytes(b"old")
        progress = self.progress()
        with trouble:
            code, said = self.run()
            left = list(self.folder.rglob(".*.tmp*"))
        assert left == []
        if code == 0:
            assert self.read() == self.whole
            return False
        for out, whole in zip(self.outs, self.whole, strict=True):
            assert out.read_bytes() in (b"old", whole)
        (sentence,) = said
        assert sentence.startswith("Error: ")
        assert helps in sentence
        assert len(sentence) <= 400
        assert (self.folder / sentence.split(": ")[1]).parent.exists()  # the file that it names
        assert progress <= self.progress()
        return True

    def progress(self):
        return set((self.folder / ".s4spipe").rglob("*.pt"))


@pytest.mark.parametrize("name", STAGES)
def test_a_full_disk_is_told_in_one_sentence_and_the_stage_goes_on_when_there_is_room(name, disk, record_property):
    trial = Trial(name, disk)
    size = sum(map(len, trial.whole))
    failed = [trial.fails(full(disk, int(share * size)), "make room on its disk") for share in ROOM]
    assert failed[0]
    record_property("stages on a full disk", sum(failed))
    assert trial.run() == (0, [])
    assert trial.read() == trial.whole


@pytest.mark.parametrize("name", STAGES)
def test_a_folder_that_cannot_be_written_is_told_in_one_sentence(name, disk, record_property):
    trial = Trial(name, disk)
    folders = [disk, trial.outs[-1].parent]
    for folder in folders:
        assert trial.fails(read_only(folder), "give yourself the right to read and write there")
    record_property("stages in a read-only folder", len(folders))
    assert trial.run() == (0, [])
    assert trial.read() == trial.whole


@pytest.mark.parametrize("name", STAGES)
def test_of_the_same_stage_twice_at_once_one_waits_and_both_end_the_same(name, project, edited, record_property):
    trial = Trial(name, project)
    started = [trial.start(number) for number in range(2)]
    for process, _ in started:
        process.join()
    assert [process.exitcode for process, _ in started] == [0, 0]
    assert trial.read() == trial.whole
    waits = [line for _, said in started for line in said.read_text().splitlines()]
    assert waits in [
        [],
        *([f"waits for process {p.pid}, which runs the same stage in this folder"] for p, _ in started),
    ]
    record_property("stages started twice at once", 1)
    record_property("of which one waited", len(waits))
    assert not any((project / ".s4spipe").iterdir())
