import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from support import fits
from support.fits import NOISE, Net, pairs, parameters
from support.problems import noises

from s4spipe.learning import adam, distance, families, relaxed
from s4spipe.learning.families import LMS, Times
from s4spipe.learning.task import in_micro_batches
from s4spipe.runtime.errors import UserError
from s4spipe.runtime.scratch import Scratch, fingerprint
from s4spipe.sampling.loop import sample
from s4spipe.solvers import registry, timesteps


def learn(phases, folder, radius=0.0, student=None, rate=0.02, **options):
    """The student after it was learned, and the history; `options` go to the task."""
    t = timesteps.build("logsnr", NOISE, 4)
    student = LMS("ipndm", NOISE, t, 3, Times(NOISE, t)) if student is None else student
    task = fits.task(student, folder, **options)
    return student, adam.fit(task, phases, distance.l2, adam.Adam(20, rate, radius))


def test_no_epochs_leave_the_classical_solver(tmp_path):
    student, history = learn(adam.s4s(0), tmp_path)
    known = registry.build("ipndm", NOISE, timesteps.build("logsnr", NOISE, 4))
    for entry in ("t", "t_c", "c", "W"):
        torch.testing.assert_close(getattr(student(), entry), getattr(known, entry), rtol=1e-12, atol=1e-12)
    assert len(history) == 1


def test_s4s_learns_coefficients_alone(tmp_path):
    student, history = learn(adam.s4s(8), tmp_path)
    assert min(row["validation"] for row in history) < 0.5 * history[0]["validation"]
    assert student.of_b.u.abs().max() > 0
    torch.testing.assert_close(student().t, timesteps.build("logsnr", NOISE, 4))


def test_s4s_alt_learns_times_and_coefficients_in_turn(tmp_path):
    student, history = learn(adam.s4s_alt(3, 1, 2), tmp_path)
    assert [row["learns"] for row in history[1:]] == ["times", "times", *3 * ["times", "coefficients"]]
    assert min(row["validation"] for row in history) < 0.6 * history[0]["validation"]
    assert (student().t - timesteps.build("logsnr", NOISE, 4)).abs().max() > 0.01


def test_joint_spends_its_epochs_on_everything_after_a_schedule_to_start_from():
    alternating, joint = adam.s4s_alt(3, 2, 1), adam.joint(12, 1)
    assert sum(p.epochs for p in alternating) == sum(p.epochs for p in joint) == 13
    assert alternating[0] == joint[0] == adam.Phase(("times",), 1)
    assert {p.learns for p in joint[1:]} == {("coefficients", "times")}


def test_an_epoch_in_vain_is_undone_and_halves_the_rate_of_what_it_moved(tmp_path):
    student, history = learn(adam.s4s(3), tmp_path, rate=1e3)
    losses = [row["validation"] for row in history]
    assert min(losses[1:]) > losses[0]
    assert student.of_b.u.abs().max() == 0
    rates = {group["name"]: group["lr"] for group in Scratch(tmp_path).load("fit")["optimizer"]["param_groups"]}
    assert rates == {"coefficients": 1e3 / 8, "times.xi": 1e3, "times.xi_c": 1e3}


def test_frozen_parameters_stay(tmp_path):
    student, _ = learn([adam.Phase(("times",), 2)], tmp_path)
    assert student.of_b.u.abs().max() == 0


def test_the_kept_parameters_are_the_best_on_validation(tmp_path):
    net = Net()
    student, history = learn(adam.s4s_alt(2, 1, 1), tmp_path, net=net)
    validation = pairs(30, 2, net)
    loss = distance.l2(sample(net, student(), validation.x_T), validation.x_0).mean().item()
    assert abs(loss - min(row["validation"] for row in history)) < 1e-12


def test_a_fit_killed_and_resumed_ends_like_an_undisturbed_one(tmp_path, monkeypatch):
    phases = adam.s4s_alt(2, 1, 1)
    whole, history = learn(phases, tmp_path / "whole", radius=0.5)

    saves, save = [], Scratch.save

    def save_thrice_and_die(scratch, name, state):
        save(scratch, name, state)
        saves.append(name)
        if len(saves) == 3:
            raise KeyboardInterrupt

    monkeypatch.setattr(Scratch, "save", save_thrice_and_die)
    with pytest.raises(KeyboardInterrupt):
        learn(phases, tmp_path / "killed", radius=0.5)
    monkeypatch.undo()
    assert Scratch(tmp_path / "killed").load("fit")["epoch"] == 3
    resumed, again = learn(phases, tmp_path / "killed", radius=0.5)
    assert torch.equal(parameters(resumed), parameters(whole))
    assert again == history


def test_seeds_change_the_order_of_the_pairs_only(tmp_path):
    a, b, c = (learn(adam.s4s(1), tmp_path / str(i), seed=s)[0] for i, s in enumerate((0, 0, 1)))
    assert torch.equal(parameters(a), parameters(b))
    assert not torch.equal(parameters(a), parameters(c))


def test_moved_noises_stay_in_their_ball_and_lower_the_training_loss(tmp_path):
    learn(adam.s4s(2), tmp_path, radius=0.5)
    state = Scratch(tmp_path).load("fit")
    x_T, moved = pairs(60, 1, Net()).x_T, state["moved"]
    limit = NOISE.sigma_T * relaxed.radius(0.5, 3, 9)
    distances = (moved - x_T).norm(dim=1)
    assert 0 < distances.max() <= limit * (1 + 1e-9)
    assert sum(row["moves"] for row in state["history"]) > 0


def test_noises_move_by_the_gradient_in_units_of_sigma_T(tmp_path):
    """A step's length is 12 / len(t) sigma_T^2 times the gradient, in the units of the state."""
    student, _ = learn(adam.s4s(1), tmp_path, radius=0.5, rate=1e-12)  # the coefficients stay
    net, some = Net(), pairs(60, 1, Net())
    x_T = some.x_T.clone().requires_grad_()
    (slope,) = torch.autograd.grad(distance.l2(sample(net, student(), x_T), some.x_0).sum(), x_T)
    steps = -12 / len(student.t) * NOISE.sigma_T**2 * slope
    limit = NOISE.sigma_T * relaxed.radius(0.5, 3, 9)
    expected = relaxed.project(some.x_T + steps, some.x_T, limit)
    moved = Scratch(tmp_path).load("fit")["moved"]
    went = (moved != some.x_T).any(1)
    assert went.sum() > 10
    assert (steps.norm(dim=1) > limit).any()
    torch.testing.assert_close(moved[went], expected[went], rtol=1e-4, atol=1e-6)


def test_without_a_radius_no_noise_moves(tmp_path):
    learn(adam.s4s(1), tmp_path)
    assert torch.equal(Scratch(tmp_path).load("fit")["moved"], pairs(60, 1, Net()).x_T)


@given(seed=st.integers(0, 10**6), limit=st.floats(1e-3, 1e3), spread=st.floats(1e-3, 1e3), n=st.integers(1, 5))
def test_projection_is_the_nearest_point_of_the_ball(seed, limit, spread, n):
    centre, moved = noises(n, 4, seed=seed), noises(n, 4, scale=spread, seed=seed + 1)
    projected = relaxed.project(moved, centre, limit)
    assert ((projected - centre).norm(dim=1) <= limit * (1 + 1e-9)).all()
    inside = (moved - centre).norm(dim=1) <= limit
    torch.testing.assert_close(projected[inside], moved[inside])
    outside = ~inside
    direction = (moved - centre)[outside] / (moved - centre)[outside].norm(dim=1, keepdim=True)
    torch.testing.assert_close(projected[outside], centre[outside] + limit * direction)


def test_the_radius_is_the_papers():
    """Proportional to m^(-5/2); 0.02 * 3072 * 12^(-5/2) for 32x32x3 at N = 5, k = 3."""
    assert abs(relaxed.radius(0.02, 3072, 12) - 0.1232) < 1e-4


def test_the_backward_pass_keeps_states_only(tmp_path):
    """What autograd saves for the backward pass does not hold the network's activations."""
    wide = torch.nn.Sequential(torch.nn.Linear(3, 4096), torch.nn.Tanh(), torch.nn.Linear(4096, 3)).double()
    wide.requires_grad_(False)
    sizes = {}
    for nfe in (3, 10):
        t = timesteps.build("logsnr", NOISE, nfe)
        student, saved = LMS("ddim", NOISE, t, 1), []
        net = lambda x, t, c: wide(x)  # noqa: E731
        call = adam.recomputed(net)
        with torch.autograd.graph.saved_tensors_hooks(lambda x: saved.append(x.numel()) or x, lambda x: x):
            sample(call, student(), noises(50, scale=20.0)).sum().backward()
        sizes[nfe] = max(saved)
    assert sizes[10] == sizes[3] < 4096


def test_scratch_forgets_what_is_done(tmp_path):
    scratch = Scratch(tmp_path / "x")
    learn(adam.s4s(1), tmp_path / "x")
    assert scratch.load("fit") is not None
    scratch.clear()
    assert scratch.load("fit") is None
    assert fingerprint(1) != fingerprint(2)
    with pytest.raises(UserError, match=r"gone\.safetensors: no such file"):
        fingerprint(1, files=(tmp_path / "gone.safetensors",))


@pytest.mark.parametrize(("family", "init"), [("fixed", "unipc_bh2"), ("pc", "unipc_bh2"), ("ss", "dpmpp_2s"),
                                              ("dss", "euler"), ("gs", "dpmpp_3m"), ("bns", "ddim"),
                                              ("epd", "parallel_midpoints")])  # fmt: skip
def test_every_family_learns(family, init, tmp_path):
    start = registry.make(init, "logsnr", NOISE, 4)
    student = families.make(family, start, Times(NOISE, start.t), order=3)
    _, history = learn([adam.Phase(("coefficients", "times"), 6)], tmp_path, student=student)
    assert min(row["validation"] for row in history) < 0.9 * history[0]["validation"]


@pytest.mark.parametrize("size", [1, 3])
def test_a_minibatch_in_parts_is_the_same_minibatch(size, tmp_path):
    phases, sizes = adam.s4s_alt(1, 1, 1), (100, size)
    ends = [learn(phases, tmp_path / str(n), radius=0.5, micro_batch_size=n) for n in sizes]
    torch.testing.assert_close(*(parameters(student) for student, _ in ends), rtol=1e-6, atol=1e-9)
    whole, parts = (history for _, history in ends)
    assert any(row["moves"] for row in whole)
    assert [row["moves"] for row in whole] == [row["moves"] for row in parts]


@pytest.mark.parametrize("size", [1, 3, 10, 100])
def test_no_micro_batch_is_larger_than_asked(size, tmp_path):
    """As the network sees it, whose activations are what memory is needed for."""

    class Counting(Net):
        def forward(self, x, t, condition=None):
            seen.append(len(x))
            return super().forward(x, t, condition)

    seen = []
    learn(adam.s4s(1), tmp_path, radius=0.5, net=Counting(), micro_batch_size=size)
    assert max(seen) == min(size, 30)  # a minibatch is 20 pairs, validation 30
    assert list(in_micro_batches(torch.arange(0), torch.zeros(0, 3), size)) == []
    index, x = zip(*in_micro_batches(torch.arange(7), torch.arange(21).view(7, 3), size), strict=True)
    assert torch.equal(torch.cat(index), torch.arange(7))
    assert torch.equal(torch.cat(x), torch.arange(21).view(7, 3))
