import pytest
import torch
from test_fit import NOISE, Net, pairs

from s4spipe import cost, distance, steps
from s4spipe.distill import fit as fitting
from s4spipe.distill import gauss_newton as newton
from s4spipe.families import FAMILIES, Times
from s4spipe.files import Scratch
from s4spipe.sampling import sample

ALL = (fitting.COEFFICIENTS, fitting.TIMES)
STARTS = {"lms": "ipndm", "gs": "dpmpp_3m", "bns": "dpmpp_3m", "pc": "unipc_bh2", "dss": "euler", "fixed": "ipndm_afs"}


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


def learn(student, folder, net=None, learns=ALL, steps=8):
    teacher = Net()
    training, validation = pairs(60, 1, teacher), pairs(30, 2, teacher)
    net = teacher if net is None else net
    return newton.fit(student, learns, net, training, validation, batch_size=40, at_once=100, steps=steps, seed=0,
                      scratch=Scratch(folder))  # fmt: skip


@pytest.mark.parametrize("family", STARTS)
def test_the_jacobian_is_that_of_reverse_mode(family):
    net, student = Net(), shaken(make(family))
    some = pairs(5, 1, net)
    some = newton.Pairs(some.x_T.double(), some.x_0.double(), None)
    parameters = newton.Parameters(student, ALL)
    end, jacobian, spent = newton.forward(*parameters.table(), NOISE, net, some)
    torch.testing.assert_close(end, sample(net, student(), some.x_T).detach(), rtol=1e-10, atol=1e-10)
    names = list(parameters.chosen)

    def samples(*given):
        return sample(net, torch.func.functional_call(student, dict(zip(names, given, strict=True))), some.x_T)

    exact = torch.autograd.functional.jacobian(samples, tuple(parameters.chosen.values()))
    exact = torch.cat([j.flatten(some.x_0.ndim).movedim(-1, 0) for j in exact])
    assert exact.abs().max() > 0.1
    assert (jacobian - exact).norm() < 1e-2 * exact.norm()
    assert spent < len(some) * student.nfe * (1 + len(jacobian))  # what acts later only is not perturbed


def test_loss_slope_and_curvature_are_those_of_the_residuals():
    net = Net()
    some, parameters = pairs(7, 1, net), newton.Parameters(shaken(make("lms")), ALL)
    loss, slope, curvature, _ = newton.linearised(parameters, net, some, 50)
    end, jacobian, _ = newton.forward(*parameters.table(), NOISE, net, some)
    residual, jacobian = (end - some.x_0).flatten().double(), jacobian.flatten(1)
    assert loss == pytest.approx(residual.square().mean().item(), rel=1e-4)
    # In other batches the differences are of other lengths.
    for ours, theirs in ((slope, jacobian @ residual), (curvature, jacobian @ jacobian.T)):
        assert (ours - theirs / len(residual)).norm() < 1e-2 * ours.norm()


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


def test_the_network_is_never_differentiated(tmp_path):
    class Opaque(Net):
        def forward(self, x, t, condition=None):
            assert not torch.is_grad_enabled()
            return super().forward(x, t, condition)

    assert learn(make("gs"), tmp_path, net=Opaque())[-1]["evaluations"] > 0


def test_evaluations_are_counted(tmp_path):
    class Counting(Net):
        rows = 0

        def forward(self, x, t, condition=None):
            self.rows += len(x)
            return super().forward(x, t, condition)

    net = Counting()
    history = learn(make("lms"), tmp_path, net=net)
    assert history[-1]["evaluations"] == net.rows - 30 * 4  # without those of the start's loss


@pytest.mark.parametrize("nfe", [3, 4, 6])
def test_the_cost_told_before_a_run_is_that_of_gs(nfe):
    net = Net()
    some = pairs(5, 1, net)
    spent = newton.forward(*newton.Parameters(make("gs", nfe), ALL).table(), NOISE, net, some)[2]
    assert spent == len(some) * (nfe + cost._perturbed(nfe))


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
            if self.calls == 300:
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
    newton.fit(student, ALL, net, same, same, batch_size=40, at_once=100, steps=2, seed=0, scratch=Scratch(tmp_path))
    torch.testing.assert_close(newton.Parameters(student, ALL).get(), before, rtol=0, atol=1e-4)
