"""SIGKILL in the middle of any stage: it is run again and ends as if nothing had happened."""

import multiprocessing
import signal

import pytest
import stage_process

pytestmark = pytest.mark.slow

# Every stage, where it can be killed: its module and arguments, its outs, and what makes it short.
STAGES = {
    "train_digits": (["train_digits"], ["models/digits.safetensors"],
                     {"train_digits": {"steps": 20, "batch_size": 16}}),
    "train_features": (["train_features", "features"], ["models/features.safetensors"],
                       {"train_features": {"epochs": 3}}),
    "train_perceptual": (["train_features", "perceptual"], ["models/perceptual.safetensors"],
                         {"train_perceptual": {"epochs": 3}}),
    "digits_images": (["digits_images"], ["models/digits.npy"], {}),
    "real": (["real"], ["statistics/real.safetensors"], {}),
    "reference": (["reference"], ["tiny/reference.safetensors"],
                  {"fid": {"reference": "tiny/reference.safetensors"}, "reference": {"count": 70}}),
    "teacher": (["classical", "teacher", "6", "solvers/teacher/6.json"], ["solvers/teacher/6.json"], {}),
    "search": (["search", "gits"], ["schedules/gits.json"], {"gits": {"grid": 6, "noises": 70}}),
    "teacher_pairs": (["teacher_pairs"], ["pairs/train.safetensors", "pairs/validation.safetensors"], {}),
    "classical": (["classical", "ddim", "3", "solvers/ddim/3.json"], ["solvers/ddim/3.json"], {}),
    "fit_s4s": (["fit_s4s", "3"], ["fits/s4s/3.json", "fits/s4s/3.history.json"], {"s4s": {"epochs": 2}}),
    "refine_s4s_alt": (["refine_s4s_alt", "3"], ["fits/s4s_alt/3.json", "fits/s4s_alt/3.history.json"], {}),
    "fit": (["fit", "3"], ["fits/free/3.fitted.json", "fits/free/3.fitted.history.json"], {}),
    "refine": (["refine", "3"], ["fits/free/3.json", "fits/free/3.history.json"], {}),
    "sample": (["sample", "ddim", "3"], ["samples/ddim-3.npy", "samples/ddim-3.safetensors"], {}),
    "evaluate_fid": (["evaluate_fid", "s4s", "3"],
                     ["evaluations/s4s-3.json", "evaluations/s4s-3.png", "solvers/s4s/3.json"], {}),
    "report": (["report"], [
        *(f"results/{name}" for name in ("metrics.json", "fid.csv", "fid.json", "table.md", "report.html")),
        *(f"results/figures/{name}.png" for name in ("fid", "loss-3", "samples-3", "coefficients-3")),
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
