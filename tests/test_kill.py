"""SIGKILL in the middle of any stage: it is run again and ends as if nothing had happened."""

import multiprocessing
import signal

import pytest
from support import stage_process

pytestmark = pytest.mark.slow

# Every stage, where it can be killed: its module and arguments, its outs, and what makes it short.
RUN = "runs/digits"
STAGES = {
    "train_digits": (["train_digits"], ["models/digits.safetensors"],
                     {"train_digits": {"steps": 20, "batch_size": 16}}),
    "train_features": (["train_features", "features"], ["models/features.safetensors"],
                       {"train_features": {"epochs": 3}}),
    "train_perceptual": (["train_features", "perceptual"], ["models/perceptual.safetensors"],
                         {"train_perceptual": {"epochs": 3}}),
    "digits_images": (["digits_images"], ["data/digits.npy"], {}),
    "real": (["real"], [f"{RUN}/real.safetensors"], {}),
    "reference": (["reference"], [f"{RUN}/reference.safetensors"], {"reference": {"count": 70}}),
    "schedules": (["schedules"], [f"{RUN}/schedules/inputs.json"], {}),
    "tables": (["tables"], [f"{RUN}/tables/ddim-3.json", f"{RUN}/tables/teacher-6.json", f"{RUN}/starts/free-3.json"],
               {}),
    "search": (["search", "gits"], [f"{RUN}/schedules/gits.json"], {"gits": {"grid": 6, "noises": 70}}),
    "teacher_pairs": (["teacher_pairs"], [f"{RUN}/pairs/train.safetensors", f"{RUN}/pairs/validation.safetensors"], {}),
    "learn": (["learn", "solvers", "s4s", "3"], [f"{RUN}/solvers/s4s-3/{name}.json" for name in ("solver", "history")],
              {"learners": {"s4s": {"epochs": 2}}}),
    "learn alternating": (["learn", "solvers", "s4s_alt", "3"], [f"{RUN}/solvers/s4s_alt-3/solver.json"], {}),
    "fit": (["learn", "fits", "free", "3"], [f"{RUN}/fits/free-3/{name}.json" for name in ("solver", "history")], {}),
    "refine": (["refine", "free", "3"], [f"{RUN}/solvers/free-3/{name}.json" for name in ("solver", "history")], {}),
    "sample": (["sample", "tables", "ddim", "3"],
               [f"{RUN}/samples/ddim-3/{name}" for name in ("images.npy", "states.safetensors", "about.json")], {}),
    "evaluate": (["evaluate", "s4s", "3"],
                 [f"{RUN}/evaluations/s4s-3/{name}" for name in ("metrics.json", "trajectories.json", "samples.png")],
                 {}),
    "report": (["report"], [
        *(f"{RUN}/report/{name}" for name in ("metrics.json", "fid.csv", "fid.json", "table.md", "report.html")),
        *(f"{RUN}/report/figures/{name}.png" for name in ("fid", "loss-3", "samples-3", "coefficients-3")),
    ], {}),
}  # fmt: skip
FORK = multiprocessing.get_context("forkserver")
# What the stages import, once for all the processes forked below.
FORK.set_forkserver_preload(
    [*(f"stages.{arguments[0]}" for arguments, _, _ in STAGES.values()), "diffusers.models.unets.unet_2d"]
)


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
