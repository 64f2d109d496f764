import pytest
import torch
from test_fit import NOISE, Net, pairs

from s4spipe import distance, steps
from s4spipe.distill import fit as fitting
from s4spipe.distill import gauss_newton as newton
from s4spipe.families import FAMILIES, Times
from s4spipe.files import Scratch
from s4spipe.sampling import sample

ALL = (fitting.COEFFICIENTS, fitting.TIMES)
STARTS = {"lms": "ipndm", "gs": "dpmpp_3m", "bns": "dpmpp_3m", "pc": "unipc_bh2", "dss": "euler", "fixed": "ipndm_afs",
          "free": "dpmpp_3m"}  # fmt: skip


def make(family, nfe=4):
    init = STARTS[family]
    t = steps.build("logsnr", NOISE, nfe + init.endswith("_afs"))
    return FAMILIES[family](init, NOISE, t, nfe, 3, Times(NOISE, t), False)


def shaken(student):
    """Away from the start, where some derivatives vanish."""
    generator = torch.manual_seed(0)
    with torch.no_grad():
        for p in student.parameters():
            p += 0.05 * torch.randn(p.shape, generator=generator, dtype=p.dtype)
    student.clip()
    return student


def learn(student, folder, net=None, learns=ALL, steps=8, apart=distance.l2):
    teacher = Net()
    training, validation = pairs(60, 1, teacher), pairs(30, 2, teacher)
    net = teacher if net is None else net
    return newton.fit(student, learns, net, training, validation, apart, batch_size=40, at_once=100, steps=steps,
                      seed=0, scratch=Scratch(folder))  # fmt: skip


def by_reverse_mode(parameters, net, some):
    """Samples and their Jacobian [P, B, ...], by differentiating the sampler."""
    names = list(parameters.chosen)

    def samples(*given):
        table = torch.func.functional_call(parameters.student, dict(zip(names, given, strict=True)))
        return sample(net, table, some.x_T.double())

    values = tuple(p.detach() for p in parameters.chosen.values())
    exact = torch.autograd.functional.jacobian(samples, values)
    return samples(*values), torch.cat([j.reshape(*some.x_0.shape, -1).movedim(-1, 0) for j in exact])


@pytest.mark.parametrize("apart", [distance.l2, distance.pseudo_huber])
@pytest.mark.parametrize("family", STARTS)
def test_loss_and_slope_are_those_of_reverse_mode(family, apart):
    net, student = Net(), shaken(make(family))
    some, parameters = pairs(7, 1, net), newton.Parameters(student, ALL)
    loss, slope, _ = newton.linearised(parameters, net, some, apart, 0, 5)
    end, jacobian = by_reverse_mode(parameters, net, some)
    end = end.detach().requires_grad_()
    distances = apart(end, some.x_0)
    (by_end,) = torch.autograd.grad(distances.mean(), end)
    assert loss == pytest.approx(distances.mean().item(), rel=1e-6)
    torch.testing.assert_close(slope, jacobian.flatten(1) @ by_end.flatten(), rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize(("apart", "weight"), [(distance.l2, lambda r: 2 / r.shape[1] + 0 * r[:, 0]),
                                               (distance.pseudo_huber, lambda r: 1 / r.norm(dim=1))])  # fmt: skip
def test_the_curvature_is_gauss_newtons_on_average(apart, weight):
    net, parameters = Net(), newton.Parameters(shaken(make("lms")), ALL)
    some = pairs(7, 1, net)
    end, jacobian = by_reverse_mode(parameters, net, some)
    w = weight((end - some.x_0).flatten(1)).detach()
    exact = torch.einsum("pbd,b,qbd->pq", jacobian.flatten(2), w, jacobian.flatten(2)) / len(some)
    drawn = [newton.linearised(parameters, net, some, apart, number, 50)[2] for number in range(400)]
    mean = torch.stack(drawn).mean(0)
    assert (mean - exact).norm() < 0.1 * exact.norm()
    assert (drawn[0] - exact).norm() > 2 * (mean - exact).norm()  # one draw is further away


def test_probes_are_a_pairs_own():
    like = torch.zeros(4, 2, 3)
    together = newton.probe(5, torch.arange(4), like)
    torch.testing.assert_close(newton.probe(5, torch.tensor([2]), like)[0], together[2], rtol=0, atol=0)
    drawn = [newton.probe(5, torch.tensor([i]), like, k) for i in range(3) for k in range(2)]
    assert len({tuple(v.flatten().tolist()) for v in drawn}) == 6


@pytest.mark.parametrize("family", ["lms", "gs", "bns"])
def test_it_gets_further_than_adam(family, tmp_path):
    net = Net()
    history = learn(make(family), tmp_path / "newton")
    adams = fitting.fit(
        make(family), fitting.s4s_alt(8, 1, 2, joint=True), net, pairs(60, 1, net), pairs(30, 2, net), distance.l2,
        batch_size=20, learning_rate=0.02, radius=0.0, seed=0, scratch=Scratch(tmp_path / "adam"),
    )  # fmt: skip
    best, adams_best = (min(row["validation"] for row in rows) for rows in (history, adams))
    assert best < adams_best < adams[0]["validation"]
    assert history[0]["validation"] == pytest.approx(adams[0]["validation"], rel=1e-5)


def test_evaluations_are_counted(tmp_path):
    net = Net()
    history = learn(make("lms"), tmp_path, net=net)
    # Without those of the start's loss; a backward pass for the slope and one for each probe cannot be seen here.
    assert history[-1]["evaluations"] == net.rows - 30 * 4 + 8 * 40 * 4 * (1 + newton.PROBES)


def test_a_parameter_of_little_effect_takes_small_steps(tmp_path, monkeypatch):
    """Its curvature alone would let it go 100 times as far as any other may."""
    student = make("free")
    count = len(newton.Parameters(student, ALL).get())
    slope, curvature = torch.full((count,), 1e-3).double(), torch.eye(count).double()
    slope[3], curvature[3, 3] = 1e-6, 1e-8
    monkeypatch.setattr(newton, "linearised", lambda *_: (float("inf"), slope, curvature))
    before = newton.Parameters(student, ALL).get()
    learn(student, tmp_path, steps=1)
    moved = (Scratch(tmp_path).load("fit")["now"] - before).abs()
    assert 1e-4 < moved[-1] < 2e-3
    assert 0 < moved[3] < 0.02


class Vector:
    """Parameters that are their own table."""

    def put(self, vector):
        self.now = vector

    def table(self):
        return self.now


@pytest.mark.parametrize(
    ("others", "expected"),
    [([1.0], 0.0),
     ([1.5, 5.0], 0.25),  # the third would lead away
     ([3.5, 1.5], 0.25),  # the second would
     ([1.5, -0.5], 0.0),  # all three
     ([3.5, 4.0], -1.0),
     ([], -1.0)],
)  # fmt: skip
def test_the_mean_of_the_best_is_taken_where_it_is_better(others, expected):
    """The best is at -1, the minimum at 0."""
    parameters, asked = Vector(), []

    def loss(vector):
        asked.append(vector)
        return vector.square().item()

    low, tried = newton.mix(parameters, [(1.0, torch.tensor([x]).double()) for x in (-1.0, *others)], loss)
    assert tried == len(asked) == len(others)
    assert (parameters.now.item(), low) == (expected, expected**2)


def test_the_last_row_is_that_of_the_mean_and_of_what_is_left(tmp_path):
    net, student = Net(), make("lms")
    *met, last = learn(student, tmp_path, net=net)
    assert (last["epoch"], last["learns"], last["train"]) == (9, "mean", None)
    left = newton.mean_distance(student(), net, pairs(30, 2, net), distance.l2, 100)
    assert last["validation"] == pytest.approx(left, rel=1e-12)
    assert last["validation"] <= min(row["validation"] for row in met)


def test_only_what_is_to_learn_moves(tmp_path):
    student = make("lms")
    learn(student, tmp_path, learns=(fitting.TIMES,))
    assert student.u.abs().max() == 0
    assert (student().t - steps.build("logsnr", NOISE, 4)).abs().max() > 0.01


def test_a_killed_fit_goes_on_where_it_was(tmp_path):
    class Killed(Exception):
        pass

    class Dying(Net):
        def forward(self, x, t, condition=None):
            if self.calls == 60:
                raise Killed
            return super().forward(x, t, condition)

    whole, student = make("lms"), make("lms")
    history = learn(whole, tmp_path / "whole")
    with pytest.raises(Killed):
        learn(make("lms"), tmp_path / "killed", net=Dying())
    assert 1 < len(Scratch(tmp_path / "killed").load("fit")["history"]) < 9
    assert learn(student, tmp_path / "killed") == history
    assert torch.equal(newton.Parameters(student, ALL).get(), newton.Parameters(whole, ALL).get())


def test_a_solver_that_is_perfect_already_stays(tmp_path):
    net, student = Net(), make("lms")
    x_T = pairs(60, 1, net).x_T
    same = newton.Pairs(x_T, sample(net, student(), x_T).detach(), None)
    before = newton.Parameters(student, ALL).get()
    newton.fit(student, ALL, net, same, same, distance.l2, batch_size=40, at_once=100, steps=2, seed=0,
               scratch=Scratch(tmp_path))  # fmt: skip
    torch.testing.assert_close(newton.Parameters(student, ALL).get(), before, rtol=0, atol=1e-4)
