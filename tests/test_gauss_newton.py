import pytest
import torch
from support import fits
from support.fits import NOISE, Dying, Killed, Net, pairs

from s4spipe.learning import adam, distance, families
from s4spipe.learning import gauss_newton as newton
from s4spipe.learning.families import Times
from s4spipe.learning.pairs import Pairs
from s4spipe.learning.task import COEFFICIENTS, TIMES
from s4spipe.runtime.scratch import Scratch
from s4spipe.sampling.loop import sample
from s4spipe.solvers import registry, timesteps

ALL = (COEFFICIENTS, TIMES)
STARTS = {"lms": "ipndm", "gs": "dpmpp_3m", "bns": "dpmpp_3m", "pc": "unipc_bh2", "dss": "euler", "fixed": "ipndm_afs",
          "free": "dpmpp_3m"}  # fmt: skip
SEEN = distance.Distance(lambda x, y: features(x) - features(y), lambda r: r.square().sum(1))  # by a network


def features(x):
    """Features that do not tell all samples apart."""
    mixed = torch.randn(x.shape[1], 3, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
    return torch.sin(0.5 * x.double() @ mixed)


def make(family, nfe=4):
    start = registry.make(STARTS[family], "logsnr", NOISE, nfe)
    return families.make(family, start, Times(NOISE, start.t), order=3)


def shaken(student):
    """Away from the start, where some derivatives vanish."""
    generator = torch.manual_seed(0)
    with torch.no_grad():
        for p in student.parameters():
            p += 0.05 * torch.randn(p.shape, generator=generator, dtype=p.dtype)
    student.clip()
    return student


def learn(student, folder, net=None, learns=ALL, steps=8, distance_fn=distance.l2, **options):
    task = fits.task(student, folder, net=net, **{"micro_batch_size": 100, **options})
    return newton.fit(task, learns, distance_fn, batch_size=40, steps=steps)


def by_reverse_mode(parameters, net, some):
    """Samples and their Jacobian [P, B, ...], by differentiating the sampler."""
    names = list(parameters.chosen)

    def samples(*given):
        table = torch.func.functional_call(parameters.student, dict(zip(names, given, strict=True)))
        return sample(net, table, some.x_T.double())

    values = tuple(p.detach() for p in parameters.chosen.values())
    exact = torch.autograd.functional.jacobian(samples, values)
    return samples(*values), torch.cat([j.reshape(*some.x_0.shape, -1).movedim(-1, 0) for j in exact])


@pytest.mark.parametrize("distance_fn", [distance.l2, distance.pseudo_huber, SEEN])
@pytest.mark.parametrize("family", STARTS)
def test_loss_and_slope_are_those_of_reverse_mode(family, distance_fn):
    net, student = Net(), shaken(make(family))
    some, parameters = pairs(7, 1, net), newton.Parameters(student, ALL)
    loss, slope, _ = newton.Problem(parameters, net, distance_fn, 5).linearised(some, 0)
    end, jacobian = by_reverse_mode(parameters, net, some)
    end = end.detach().requires_grad_()
    distances = distance_fn(end, some.x_0)
    (by_end,) = torch.autograd.grad(distances.mean(), end)
    assert loss == pytest.approx(distances.mean().item(), rel=1e-6)
    torch.testing.assert_close(slope, jacobian.flatten(1) @ by_end.flatten(), rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize(("distance_fn", "weight"), [(distance.l2, lambda r: 2 / r.shape[1] + 0 * r[:, 0]),
                                                     (distance.pseudo_huber, lambda r: 1 / r.norm(dim=1))])  # fmt: skip
def test_the_curvature_is_gauss_newtons_on_average(distance_fn, weight, monkeypatch):
    net, parameters = Net(), newton.Parameters(shaken(make("lms")), ALL)
    some = pairs(7, 1, net)
    end, jacobian = by_reverse_mode(parameters, net, some)
    w = weight((end - some.x_0).flatten(1)).detach()
    exact = torch.einsum("pbd,b,qbd->pq", jacobian.flatten(2), w, jacobian.flatten(2)) / len(some)
    problem, by_parameters = newton.Problem(parameters, net, distance_fn, 50), parameters.jacobian()
    monkeypatch.setattr(parameters, "jacobian", lambda: by_parameters)  # the same in every draw, and slow
    drawn = [problem.linearised(some, number)[2] for number in range(400)]
    mean = torch.stack(drawn).mean(0)
    assert (mean - exact).norm() < 0.1 * exact.norm()
    assert (drawn[0] - exact).norm() > 2 * (mean - exact).norm()  # one draw is further away


def test_the_curvature_is_that_of_what_a_network_sees(monkeypatch):
    net, parameters = Net(), newton.Parameters(shaken(make("lms")), ALL)
    some = pairs(7, 1, net)
    end, jacobian = by_reverse_mode(parameters, net, some)
    by_end = torch.stack([torch.autograd.functional.jacobian(features, x[None])[0, :, 0] for x in end.detach()])
    seen = torch.einsum("bfd,pbd->pbf", by_end, jacobian.flatten(2))
    exact = 2 * torch.einsum("pbf,qbf->pq", seen, seen) / len(some)
    problem, by_parameters = newton.Problem(parameters, net, SEEN, 50), parameters.jacobian()
    monkeypatch.setattr(parameters, "jacobian", lambda: by_parameters)
    mean = torch.stack([problem.linearised(some, number)[2] for number in range(400)]).mean(0)
    assert (mean - exact).norm() < 0.1 * exact.norm()


def test_a_fit_by_what_a_network_sees_comes_closer_in_that(tmp_path):
    net, seen = Net(), distance.robust([SEEN.residual], torch.ones(2, 4), torch.zeros(2, 4))
    unseen, student = pairs(200, 7, net), make("lms", nfe=3)
    start = newton.mean_distance(student(), net, unseen, seen, 100)
    learn(student, tmp_path, distance_fn=seen)
    assert newton.mean_distance(student(), net, unseen, seen, 100) < 0.8 * start


def test_probes_are_a_pairs_own():
    like = torch.zeros(4, 2, 3)
    together = newton.probe(5, torch.arange(4), like)
    torch.testing.assert_close(newton.probe(5, torch.tensor([2]), like)[0], together[2], rtol=0, atol=0)
    drawn = [newton.probe(5, torch.tensor([i]), like, k) for i in range(3) for k in range(2)]
    assert len({tuple(v.flatten().tolist()) for v in drawn}) == 6


@pytest.mark.parametrize("family", ["lms", "gs", "bns"])
def test_it_gets_further_than_adam(family, tmp_path):
    history = learn(make(family), tmp_path / "newton")
    by_adam = fits.task(make(family), tmp_path / "adam")
    adams = adam.fit(by_adam, adam.joint(16, 2), distance.l2, adam.Adam(batch_size=20, learning_rate=0.02))
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
    monkeypatch.setattr(newton.Problem, "linearised", lambda *_: (float("inf"), slope, curvature))
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

    def loss():
        asked.append(parameters.now)
        return parameters.now.square().item()

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
    learn(student, tmp_path, learns=(TIMES,))
    assert student.of_b.u.abs().max() == 0
    assert (student().t - timesteps.build("logsnr", NOISE, 4)).abs().max() > 0.01


def test_a_killed_fit_goes_on_where_it_was(tmp_path):
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
    same = Pairs(x_T, sample(net, student(), x_T).detach(), None)
    before = newton.Parameters(student, ALL).get()
    learn(student, tmp_path, steps=2, training=same, validation=same)
    torch.testing.assert_close(newton.Parameters(student, ALL).get(), before, rtol=0, atol=1e-4)


@pytest.mark.parametrize("part", [1, 7])
def test_a_batch_in_parts_is_the_same_batch(part, tmp_path):
    ends = []
    for size in (100, part):
        student = make("lms")
        history = learn(student, tmp_path / str(size), steps=3, micro_batch_size=size)
        ends.append((newton.Parameters(student, ALL).get(), history))
    (whole, history), (parts, again) = ends
    torch.testing.assert_close(whole, parts, rtol=1e-6, atol=1e-9)
    assert [row["evaluations"] for row in history] == [row["evaluations"] for row in again]


@pytest.mark.parametrize("size", [1, 4, 100])
def test_the_mean_distance_is_that_of_all_samples_at_once(size):
    net, table = Net(), make("lms")()
    some = pairs(10, 1, net)
    expected = distance.pseudo_huber(sample(net, table, some.x_T), some.x_0).mean().item()
    ours = newton.mean_distance(table, net, some, distance.pseudo_huber, size)
    assert ours == pytest.approx(expected, rel=1e-12)
    assert newton.mean_distance(None, net, some, distance.l2, size) == float("inf")
    lost = Pairs(some.x_T * float("nan"), some.x_0, None)
    assert newton.mean_distance(table, net, lost, distance.l2, size) == float("inf")


def test_parameters_that_are_no_solver_have_no_table():
    student = make("free")
    parameters = newton.Parameters(student, ALL)
    assert torch.equal(parameters.table().W, student().W)
    parameters.put(parameters.get() * float("nan"))
    assert parameters.table() is None
