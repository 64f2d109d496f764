"""SIGKILL in the middle of any stage: it is run again and ends as if nothing had happened."""

import signal

import pytest
from support import stage_process
from support.every_stage import STAGES
from support.forks import FORK

pytestmark = pytest.mark.slow


@pytest.mark.parametrize(("command", "outs", "short"), STAGES.values(), ids=STAGES)
def test_killed_anywhere_and_run_again_a_stage_ends_the_same(command, outs, short, project, edited):
    """Files change by renames alone, so dying before each of some renames covers every moment between them."""
    edited(**short)
    outs = [project / out for out in outs]
    before = {out: out.read_bytes() for out in outs if out.exists()}

    def start(die_before=None):
        for out in outs:
            out.unlink(missing_ok=True)  # as DVC does
        process = FORK.Process(target=stage_process.run, args=(project, *command), kwargs={"die_before": die_before})
        process.start()
        process.join()
        return process.exitcode

    def killed(die_before):
        ended = start(die_before)
        standing = [(out.read_bytes(), whole) for out, whole in zip(outs, undisturbed, strict=True) if out.exists()]
        assert all(found == whole for found, whole in standing)
        return ended == -signal.SIGKILL

    assert start() == 0
    undisturbed = [out.read_bytes() for out in outs]
    renames = int((project / stage_process.COUNT).read_text())
    # At once; in the middle; before the last of what that left to do, if the stage goes on where it was.
    for die_before in (1, renames // 2 + 1, renames - renames // 2):
        assert killed(die_before)
    if killed(renames):  # and before the very last, if it begins anew
        assert start() == 0
    assert [out.read_bytes() for out in outs] == undisturbed
    assert int((project / stage_process.COUNT).read_text()) <= renames
    assert not any((project / ".s4spipe").iterdir())
    for out in outs:
        assert not list(out.parent.glob(".*.tmp*"))
    for out, content in before.items():
        out.write_bytes(content)
