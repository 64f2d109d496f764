import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from problems import Gaussian, noises

from s4spipe import classical, distance, files, steps
from s4spipe.distill import fit as fitting
from s4spipe.distill import relaxed
from s4spipe.errors import UserError
from s4spipe.families import FAMILIES, LMS, Times
from s4spipe.files import Scratch
from s4spipe.noise import VE
from s4spipe.pairs import Pairs
from s4spipe.sampling import sample

NOISE = VE(0.01, 20.0)


class Net(torch.nn.Module):
    """A denoiser with a nonlinearity, so that a fit has something to do, and a count of its calls and of their rows."""

    def __init__(self):
        super().__init__()
        self.problem, self.calls, self.rows = Gaussian(NOISE), 0, 0

    def forward(self, x, t, condition=None):
        self.calls += 1
        self.rows += len(x)
        return torch.tanh(2 * self.problem(x, t)) * (1 if condition is None else condition[:, None])


def pairs(n, seed, net, condition=None):
    x_T = noises(n, scale=NOISE.sigma_T, seed=seed)
    teacher = classical.build("dpmpp_2m", NOISE, steps.build("logsnr", NOISE, 60))
    return Pairs(x_T, sample(net, teacher, x_T, condition), condition)


def learn(phases, scratch, radius=0.0, student=None, seed=0, net=None, rate=0.02, at_once=100):
    net = Net() if net is None else net
    t = steps.build("logsnr", NOISE, 4)
    student = LMS("ipndm", NOISE, t, 3, Times(NOISE, t)) if student is None else student
    history = fitting.fit(
        student, phases, net, pairs(60, 1, net), pairs(30, 2, net), distance.l2,
        batch_size=20, learning_rate=rate, radius=radius, seed=seed, scratch=scratch, at_once=at_once,
    )  # fmt: skip
    return student, history


def parameters(student):
    return torch.cat([p.detach().flatten() for p in student.parameters()])


def test_no_epochs_leave_the_classical_solver(tmp_path):
    student, history = learn(fitting.s4s(0), Scratch(tmp_path))
    known = classical.build("ipndm", NOISE, steps.build("logsnr", NOISE, 4))
    for entry in ("t", "t_c", "c", "W"):
        torch.testing.assert_close(getattr(student(), entry), getattr(known, entry), rtol=1e-12, atol=1e-12)
    assert len(history) == 1


def test_s4s_learns_coefficients_alone(tmp_path):
    student, history = learn(fitting.s4s(8), Scratch(tmp_path))
    assert min(row["validation"] for row in history) < 0.5 * history[0]["validation"]
    assert student.u.abs().max() > 0
    torch.testing.assert_close(student().t, steps.build("logsnr", NOISE, 4))


def test_s4s_alt_learns_times_and_coefficients_in_turn(tmp_path):
    student, history = learn(fitting.s4s_alt(3, 1, 2, joint=False), Scratch(tmp_path))
    assert [row["learns"] for row in history[1:]] == ["times", "times", *3 * ["times", "coefficients"]]
    assert min(row["validation"] for row in history) < 0.6 * history[0]["validation"]
    assert (student().t - steps.build("logsnr", NOISE, 4)).abs().max() > 0.01


def test_joint_spends_the_same_epochs_on_everything():
    alternating, joint = (fitting.s4s_alt(3, 2, 1, joint) for joint in (False, True))
    assert sum(p.epochs for p in alternating) == sum(p.epochs for p in joint) == 13
    assert {p.learns for p in joint[1:]} == {("coefficients", "times")}


def test_an_epoch_in_vain_is_undone_and_halves_the_rate_of_what_it_moved(tmp_path):
    scratch = Scratch(tmp_path)
    student, history = learn(fitting.s4s(3), scratch, rate=1e3)
    losses = [row["validation"] for row in history]
    assert min(losses[1:]) > losses[0]
    assert student.u.abs().max() == 0
    rates = {group["name"]: group["lr"] for group in scratch.load("fit")["optimizer"]["param_groups"]}
    assert rates == {"u": 1e3 / 8, "times.xi": 1e3, "times.xi_c": 1e3}


def test_frozen_parameters_stay(tmp_path):
    student, _ = learn([fitting.Phase(("times",), 2)], Scratch(tmp_path))
    assert student.u.abs().max() == 0


def test_the_kept_parameters_are_the_best_on_validation(tmp_path):
    net = Net()
    student, history = learn(fitting.s4s_alt(2, 1, 1, joint=False), Scratch(tmp_path), net=net)
    validation = pairs(30, 2, net)
    loss = distance.l2(sample(net, student(), validation.x_T), validation.x_0).mean().item()
    assert abs(loss - min(row["validation"] for row in history)) < 1e-12


def test_a_fit_killed_and_resumed_ends_like_an_undisturbed_one(tmp_path, monkeypatch):
    phases = fitting.s4s_alt(2, 1, 1, joint=False)
    whole, history = learn(phases, Scratch(tmp_path / "whole"), radius=0.5)

    scratch, saves = Scratch(tmp_path / "killed"), []

    def save_twice_and_die(name, state):
        Scratch.save(scratch, name, state)
        saves.append(name)
        if len(saves) == 3:
            raise KeyboardInterrupt

    monkeypatch.setattr(scratch, "save", save_twice_and_die)
    try:
        learn(phases, scratch, radius=0.5)
    except KeyboardInterrupt:
        monkeypatch.undo()
    resumed, again = learn(phases, scratch, radius=0.5)
    assert torch.equal(parameters(resumed), parameters(whole))
    assert again == history


def test_seeds_change_the_order_of_the_pairs_only(tmp_path):
    a, b, c = (learn(fitting.s4s(1), Scratch(tmp_path / str(i)), seed=s)[0] for i, s in enumerate((0, 0, 1)))
    assert torch.equal(parameters(a), parameters(b))
    assert not torch.equal(parameters(a), parameters(c))


def test_moved_noises_stay_in_their_ball_and_lower_the_training_loss(tmp_path):
    scratch = Scratch(tmp_path)
    learn(fitting.s4s(2), scratch, radius=0.5)
    state = scratch.load("fit")
    x_T, moved = pairs(60, 1, Net()).x_T, state["moved"]
    limit = NOISE.sigma_T * relaxed.radius(0.5, 3, 9)
    distances = (moved - x_T).norm(dim=1)
    assert 0 < distances.max() <= limit * (1 + 1e-9)
    assert sum(row["moves"] for row in state["history"]) > 0


def test_without_a_radius_no_noise_moves(tmp_path):
    scratch = Scratch(tmp_path)
    learn(fitting.s4s(1), scratch)
    assert torch.equal(scratch.load("fit")["moved"], pairs(60, 1, Net()).x_T)


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
        t = steps.build("logsnr", NOISE, nfe)
        student, saved = LMS("ddim", NOISE, t, 1), []
        net = lambda x, t, c: wide(x)  # noqa: E731
        call = fitting.recomputed(net)
        with torch.autograd.graph.saved_tensors_hooks(lambda x: saved.append(x.numel()) or x, lambda x: x):
            sample(call, student(), noises(50, scale=20.0)).sum().backward()
        sizes[nfe] = max(saved)
    assert sizes[10] == sizes[3] < 4096


def test_scratch_forgets_what_is_done(tmp_path):
    scratch = Scratch(tmp_path / "x")
    learn(fitting.s4s(1), scratch)
    assert scratch.load("fit") is not None
    scratch.clear()
    assert scratch.load("fit") is None
    assert files.fingerprint(1) != files.fingerprint(2)
    with pytest.raises(UserError, match=r"gone\.safetensors: no such file; make it with `dvc repro`"):
        files.fingerprint(1, files=(tmp_path / "gone.safetensors",))


@pytest.mark.parametrize(("family", "init"), [("fixed", "unipc_bh2"), ("pc", "unipc_bh2"), ("ss", "dpmpp_2s"),
                                              ("dss", "euler"), ("gs", "dpmpp_3m"), ("bns", "ddim"),
                                              ("epd", "parallel_midpoints")])  # fmt: skip
def test_every_family_learns(family, init, tmp_path):
    t = steps.build("logsnr", NOISE, len(classical.costs(init, 4)))
    student = FAMILIES[family](init, NOISE, t, 4, 3, Times(NOISE, t), False)
    phase = fitting.Phase(("coefficients", "times"), 6)
    _, history = learn([phase], Scratch(tmp_path), student=student)
    assert min(row["validation"] for row in history) < 0.9 * history[0]["validation"]


def test_a_minibatch_in_parts_is_the_same_minibatch(tmp_path):
    phases, radius = fitting.s4s_alt(1, 1, 1, False), 0.5
    ends = {n: learn(phases, Scratch(tmp_path / str(n)), radius=radius, at_once=n) for n in (100, 3)}
    torch.testing.assert_close(*(parameters(student) for student, _ in ends.values()), rtol=1e-6, atol=1e-9)
    whole, parts = (history for _, history in ends.values())
    assert any(row["moves"] for row in whole)
    assert [row["moves"] for row in whole] == [row["moves"] for row in parts]
