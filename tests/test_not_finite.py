"""NaN and infinity: the first one stops the work, and is named."""

import diffusers
import numpy as np
import pytest
import torch
from diffusers.models.unets.unet_2d import UNet2DOutput
from support.pipes import guided

import s4spipe
from s4spipe.learning.pairs import Pairs
from s4spipe.learning.task import check_history, plain
from s4spipe.noise import VE
from s4spipe.pipeline.layout import Cell
from s4spipe.report import figures, measured
from s4spipe.runtime.errors import UserError
from s4spipe.runtime.files import write_json, write_tensors
from s4spipe.runtime.scratch import Scratch
from s4spipe.sampling.batches import Noises, generate
from s4spipe.sampling.loop import sample
from s4spipe.scheduler import S4SScheduler
from s4spipe.solvers import registry
from stages import evaluate

NOISE = VE()
TABLE = registry.make("ddim", "edm", NOISE, 5)


def overflows_below(limit, rows):
    """D = x / 2 that gives NaN in some rows once t is below a limit, as a network in half precision may."""

    def denoiser(x, t, condition=None):
        bad = (t < limit) & torch.isin(torch.arange(len(x)), torch.tensor(rows))
        return torch.where(bad[:, None], torch.nan, x / 2)

    return denoiser


def test_the_first_is_told_with_its_evaluation_and_time():
    t = TABLE.t_c
    with pytest.raises(
        UserError, match=r"not finite \(NaN or infinite\) for 2 of 6 samples, in evaluation 3 of 5"
    ) as e:
        sample(overflows_below(t[1], [1, 4]), TABLE, 80 * torch.randn(6, 3))
    assert f"at time {t[2].item():.6g} (ddim)" in str(e.value)
    assert "bfloat16 or float32" in str(e.value)
    assert sample(overflows_below(0.0, [1]), TABLE, torch.randn(6, 3)).isfinite().all()
    # A learner goes on: the solver that it tries may be at fault.
    assert sample(overflows_below(t[1], [1, 4]), TABLE, torch.randn(6, 3), check=False).isnan().any()


def test_in_parallel_evaluations_too():
    table = registry.make("parallel_midpoints", "edm", NOISE, 6)
    late = table.t_c.sort().values[1]
    with pytest.raises(UserError, match=r"for 1 of 3 samples, in evaluation \d of 6"):
        sample(overflows_below(late + 1e-9, [2]), table, torch.randn(3, 3))


def test_nothing_of_a_bad_shard_is_yielded_or_kept(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    from s4spipe.models.base.denoiser import Denoiser

    class Bad(Denoiser):
        sample_shape, noise_schedule, device = (3,), NOISE, torch.device("cpu")

        def predict(self, x, t, condition):
            return torch.full_like(x, torch.inf)

    scratch = Scratch("key")
    with pytest.raises(UserError, match="for 4 of 4 samples, in evaluation 1 of 5"):
        list(generate(Bad(), TABLE, Noises("sample", 0, 8), 4, scratch))
    assert not scratch.folder.exists() or not list(scratch.folder.iterdir())


def test_the_scheduler_says_the_same():
    torch.manual_seed(0)
    pipe, call = guided()
    pipe.set_progress_bar_config(disable=True)
    pipe.scheduler = S4SScheduler.from_classical("ddim", "time_uniform", 4, pipe.scheduler.config)
    calls = []

    def spoil(_net, _inputs, out):
        calls.append(1)
        return (out[0] * (torch.nan if len(calls) == 2 else 1),)

    pipe.unet.register_forward_hook(spoil)
    with pytest.raises(UserError, match=r"not finite \(NaN or infinite\) for 2 of 2 samples, in evaluation 2 of 4"):
        pipe(**call, num_inference_steps=4, output_type="latent")


def test_a_pipeline_may_write_into_the_samples_that_it_was_given():
    config = diffusers.DDIMScheduler().config
    x, out = torch.randn(2, 3, 4, 4), torch.randn(4, 2, 3, 4, 4)

    def run(spoil):
        scheduler, state = S4SScheduler.from_classical("dpmpp_2m", "time_uniform", 4, config), x.clone()
        for i, t in enumerate(scheduler.timesteps):
            new = scheduler.step(out[i], t, state).prev_sample
            if spoil:
                state.zero_()
            state = new
        return state

    assert torch.equal(run(True), run(False))


@pytest.mark.parametrize("prediction", ["epsilon", "sample"])
def test_a_network_may_return_the_same_memory_at_every_call(prediction):
    """As a captured CUDA graph does."""
    config = dict(diffusers.DDIMScheduler(prediction_type=prediction).config)
    x, memory = torch.randn(2, 3, 4, 4), torch.empty(2, 3, 4, 4)

    def run(place):
        scheduler, state = S4SScheduler.from_classical("dpmpp_3m", "time_uniform", 5, config), x
        for t in scheduler.timesteps:
            state = scheduler.step(place(torch.tanh(state + t / 1000)), t, state).prev_sample
        return state

    assert torch.equal(run(memory.copy_), run(torch.clone))


X = torch.randn(2, 3, 4, 4)


@pytest.mark.parametrize(
    ("output", "timestep", "given", "says"),
    [
        (UNet2DOutput(X), 999, X, "the network's output must be a tensor .* got UNet2DOutput"),
        (None, 999, X, "the network's output must be a tensor .* got None"),
        (X.numpy(), 999, X, "the network's output must be a tensor .* got array"),
        (X.long(), 999, X, "the network's output must be a tensor .* of floating-point numbers"),
        (X[0, 0, 0], 999, X, "the network's output must be a tensor"),
        (X, 999, X.numpy(), "the sample must be a tensor .* got array"),
        (X, 999, X.long(), "the sample must be a tensor .* of floating-point numbers"),
        (X[0, 0, 0], 999, X[0, 0, 0], r"the sample must be a tensor \[B, C, ...\]"),
        (X, None, X, "got timestep None as number 1"),
        (X, "999", X, "got timestep '999' as number 1"),
        (X, torch.tensor([999.0, 999.0]), X, r"got timestep tensor\(\[999., 999.\]\) as number 1"),
        (X, 998, X, "got timestep 998 as number 1"),
        (X, X, 999, "got timestep tensor"),
    ],
)
def test_a_step_with_anything_else_is_told(output, timestep, given, says):
    scheduler = S4SScheduler.from_classical("ddim", "time_uniform", 4, diffusers.DDIMScheduler().config)
    with pytest.raises(UserError, match=says) as caught:
        scheduler.step(output, timestep, given)
    assert len(str(caught.value)) <= 400
    assert scheduler.step(X, np.float32(999), X).prev_sample.isfinite().all()  # nothing was kept of it


def test_an_output_of_another_shape_is_refused_by_the_scheduler():
    scheduler = S4SScheduler.from_classical("ddim", "time_uniform", 4, diffusers.DDIMScheduler().config)
    x = torch.randn(2, 3, 4, 4)
    for shape in ((2, 1, 4, 4), (1, 3, 4, 4), (2, 9, 4, 4)):
        with pytest.raises(UserError, match=r"output has shape \[.*\], but the sample has \[2, 3, 4, 4\]"):
            scheduler.step(torch.randn(shape), scheduler.timesteps[0], x)


def test_a_learned_variance_is_left_out_where_the_config_says_that_there_is_one():
    config = dict(diffusers.DDPMScheduler(variance_type="learned_range").config)
    x, out = torch.randn(2, 3, 4, 4), torch.randn(2, 6, 4, 4)
    schedulers = [S4SScheduler.from_classical("ddim", "time_uniform", 4, config) for _ in range(2)]
    with_it, without = (
        s.step(o, s.timesteps[0], x).prev_sample for s, o in zip(schedulers, (out, out[:, :3]), strict=True)
    )
    assert torch.equal(with_it, without)


def test_a_metric_that_is_not_finite_is_named():
    cell = Cell("ddim", 5)
    assert evaluate.rounded({"fid": 1.234567, "kid": -0.0}, cell) == {"fid": 1.23457, "kid": 0.0}
    for value in (float("nan"), float("inf")):
        with pytest.raises(UserError, match="ddim-5: its kid is not finite; check the images or statistics"):
            evaluate.rounded({"fid": 1.0, "kid": value}, cell)


def test_learning_that_never_saw_a_finite_loss_ends_with_a_sentence():
    check_history([{"validation": float("inf")}, {"validation": 0.1}], "s4s 5 NFE")
    with pytest.raises(UserError, match="s4s 5 NFE: the validation loss was never finite"):
        check_history([{"validation": float("nan")}, {"validation": float("inf")}], "s4s 5 NFE")


def test_a_loss_that_was_not_finite_is_null_in_the_file_and_left_out_of_the_figure(tmp_path):
    losses = [float("inf"), 0.5, float("nan"), 0.25]
    rows = [
        {"epoch": i, "learns": "", "train": loss if i else None, "validation": loss} for i, loss in enumerate(losses)
    ]
    write_json(tmp_path / "history.json", plain(rows))
    history = measured.history(tmp_path / "history.json")
    assert [row["validation"] for row in history] == [None, 0.5, None, 0.25]
    drawn = figures.losses({"s4s": history}, ["s4s"]).axes[0].lines[0]
    assert (list(drawn.get_xdata()), list(drawn.get_ydata())) == ([1, 3], [1.0, 0.5])
    write_json(tmp_path / "history.json", plain(rows[:1]))
    with pytest.raises(UserError, match="history.json: no validation loss is a number"):
        measured.history(tmp_path / "history.json")


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (lambda c: S4SScheduler.from_classical("ddim", "time_uniform", 4, None), "config is needed.*NoneType"),
        (lambda c: S4SScheduler.from_classical("ddim", "time_uniform", 4, diffusers.DDIMScheduler()), "DDIMScheduler"),
        (lambda c: S4SScheduler.from_tableau(registry.make("ddim", "edm", NOISE, 3), diffusers.DDIMScheduler()),
         "config must be a scheduler's config, as pipe.scheduler.config"),
        (lambda c: S4SScheduler.from_classical("ddim", "time_uniform", "4", c), "4"),
        (lambda c: S4SScheduler.from_classical(None, "time_uniform", 4, c), "is given by its name, got None"),
        (lambda c: S4SScheduler.from_classical("ddim", None, 4, c), "schedule"),
        (lambda c: S4SScheduler.from_tableau(None, c), "solver must be a tableau, or the path"),
        (lambda c: S4SScheduler.from_tableau(torch.zeros(3), c), "solver must be a tableau, or the path"),
        (lambda c: S4SScheduler(tableau=None), "must be a JSON object"),
        (lambda c: S4SScheduler.from_classical("ddim", "time_uniform", 4, c).set_timesteps(torch.tensor([4.0, 1.0])),
         "num_inference_steps must be a whole number, got tensor"),
    ],
)  # fmt: skip
def test_python_callers_of_the_scheduler_get_one_sentence(call, says):
    with pytest.raises(UserError, match=says) as caught:
        call(diffusers.DDIMScheduler().config)
    assert len(str(caught.value)) <= 400


def test_the_public_loop_checks_too():
    with pytest.raises(UserError, match="not finite"):
        s4spipe.sample(lambda x, t, c: x * torch.inf, TABLE, torch.randn(2, 3))


def test_samples_that_the_dtype_of_the_noises_cannot_hold_are_told():
    x_T = torch.randn(3, 2)

    def denoiser(x, t, c):
        return torch.where(x[:1] == x, 1e6, 1.0)

    assert sample(denoiser, TABLE, x_T).isfinite().all()
    with pytest.raises(UserError, match=r"1 of 3 samples are not finite in torch.float16, .*\(ddim\): .* in float32"):
        sample(denoiser, TABLE, x_T.half())
    assert sample(denoiser, TABLE, x_T.half(), check=False).isinf().any()


def test_pairs_that_are_not_finite_or_not_whole_are_refused(tmp_path):
    path, x = tmp_path / "train.safetensors", torch.randn(4, 3)
    Pairs(x, x.clone(), None).save(path)
    assert len(Pairs.load(path, torch.device("cpu"))) == 4
    x[2, 1] = torch.nan
    Pairs(torch.randn(4, 3), x, None).save(path)
    assert len(Pairs.load(path, torch.device("cpu"), 2)) == 2
    with pytest.raises(UserError, match=r"train.safetensors: holds numbers that are not finite"):
        Pairs.load(path, torch.device("cpu"))
    write_tensors(path, {"x_T": x})
    with pytest.raises(UserError, match=r"train.safetensors: holds no tensor 'x_0'"):
        Pairs.load(path, torch.device("cpu"))


def test_damaged_progress_is_made_again(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    scratch = Scratch("key")
    scratch.save("a", {"x": torch.ones(1000)})
    (entry,) = scratch.folder.iterdir()
    whole = entry.read_bytes()
    for damage in (b"", whole[:100], whole[: len(whole) // 2], b"x" * 500, bytes(500)):
        entry.write_bytes(damage)
        assert scratch.once("a", lambda: {"x": 1}) == {"x": 1}
