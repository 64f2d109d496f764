"""Every stage on a disk that is full, in a folder that cannot be written, and twice at once."""

import os
import shutil
import subprocess
from contextlib import contextmanager

import pytest
from support import stage_process
from support.every_stage import STAGES
from support.forks import FORK
from support.pipeline import edit

pytestmark = pytest.mark.slow

ROOM = (0, 0.5)  # on the disk, in shares of what the stage writes


@pytest.fixture(scope="module")
def disk(project, tmp_path_factory):
    """A copy of the project, on a small disk of its own where this user may mount one."""
    disk = tmp_path_factory.mktemp("small") / "disk"
    disk.mkdir()
    mounted = mount("-t", "tmpfs", "-o", "size=32m", "tmpfs", disk).returncode == 0
    shutil.copyfile(project / "params.yaml", disk / "params.yaml")
    for part in ("data", "inputs", "models", "runs"):
        shutil.copytree(project / part, disk / part)
    yield disk
    if mounted:
        subprocess.run(["umount", disk], check=True)


@pytest.fixture
def may_mount(disk):
    if not disk.is_mount():
        pytest.skip("no right to mount here")


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
    assert mount("--bind", folder, folder).returncode == 0
    try:
        assert mount("-o", "remount,ro,bind", folder).returncode == 0
        yield
    finally:
        subprocess.run(["umount", folder], check=True)


class Trial:
    """A stage in `folder`, and the bytes of its outs when nothing disturbs it."""

    def __init__(self, name, folder):
        self.folder, (self.command, outs, short) = folder, STAGES[name]
        edit(folder, **short)
        self.outs = [folder / out for out in outs]
        self.before = {out: out.read_bytes() for out in self.outs if out.exists()}
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


@pytest.fixture(scope="module", params=STAGES)
def trial(request, disk):
    """Every stage, run once."""
    parameters = (disk / "params.yaml").read_bytes()
    trial = Trial(request.param, disk)
    yield trial
    (disk / "params.yaml").write_bytes(parameters)
    for out, content in trial.before.items():
        out.write_bytes(content)


def test_a_full_disk_is_told_in_one_sentence_and_the_stage_goes_on_when_there_is_room(
    trial, disk, may_mount, record_property
):
    size = sum(map(len, trial.whole))
    failed = [trial.fails(full(disk, int(share * size)), "make room on its disk") for share in ROOM]
    assert failed[0]
    record_property("stages on a full disk", sum(failed))
    assert trial.run() == (0, [])
    assert trial.read() == trial.whole


def test_a_folder_that_cannot_be_written_is_told_in_one_sentence(trial, disk, may_mount, record_property):
    folders = [disk, trial.outs[-1].parent]
    for folder in folders:
        assert trial.fails(read_only(folder), "give yourself the right to read and write there")
    record_property("stages in a read-only folder", len(folders))
    assert trial.run() == (0, [])
    assert trial.read() == trial.whole


def test_of_the_same_stage_twice_at_once_one_waits_and_both_end_the_same(trial, disk, record_property):
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
    assert not any((disk / ".s4spipe").iterdir())
