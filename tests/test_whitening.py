import pytest
import torch
from support import fits
from support.fits import NOISE, Net, pairs, parameters
from support.problems import noises

from s4spipe.learning import adam, distance, families
from s4spipe.learning.families import LMS, Times
from s4spipe.learning.whitening import STRIDE, Whitened
from s4spipe.runtime.scratch import Scratch
from s4spipe.sampling.loop import sample
from s4spipe.solvers import registry, timesteps

T = timesteps.build("logsnr", NOISE, 6)


def lms():
    return LMS("ipndm", NOISE, T, 3, Times(NOISE, T))


def whitened(student, folder, metric=distance.pseudo_huber):
    white = Whitened(fits.task(student, folder), metric, batch_size=20)
    white.begin(0)
    return white


def loss_at(white, v):
    """The loss of the first pairs with the coefficients of v, by sampling alone."""
    task = white.task
    white.parameters.put(white.start + white.by_v @ v)
    some = task.training.take(torch.arange(60))
    return distance.pseudo_huber(sample(task.denoiser, task.student(), some.x_T), some.x_0).mean()


def test_the_loss_is_curved_alike_in_all_directions(tmp_path):
    """By the derivatives of all samples, one by one: the Gauss-Newton curvature of ||r|| is J^T J / ||r||."""
    student, net = lms(), Net()
    white = whitened(student, tmp_path)
    some = pairs(60, 1, net)

    def ends(u):
        return sample(net, torch.func.functional_call(student, {"of_b.u": u.view_as(student.of_b.u)}, ()), some.x_T)

    jacobian = torch.autograd.functional.jacobian(ends, student.of_b.u.detach().flatten())
    sizes = (ends(student.of_b.u.detach()) - some.x_0).norm(dim=1)
    used = student.of_b.mask.flatten() > 0
    by_u = torch.einsum("bip,biq,b->pq", jacobian, jacobian, 1 / sizes).detach() / len(some)
    by_v = white.by_v.T @ by_u @ white.by_v
    spread = [values.max() / values.min() for values in map(torch.linalg.eigvalsh, (by_u[used][:, used],
                                                                                    by_v[used][:, used]))]  # fmt: skip
    assert spread[0] > 1e6
    assert spread[1] < 1e-2 * spread[0]
    largest = torch.linalg.eigvalsh(by_v).max()
    assert 0.3 < largest / (STRIDE**2 * loss_at(white, torch.zeros_like(white.start))) < 3


@pytest.mark.parametrize(("family", "init"), [("lms", "ipndm"), ("pc", "unipc_bh2"), ("ss", "dpmpp_2s")])
def test_the_gradient_of_v_is_that_of_finite_differences(family, init, tmp_path):
    start = registry.make(init, "logsnr", NOISE, 6)
    white = whitened(families.make(family, start, None, order=3), tmp_path)
    v = 1e-2 * noises(1, len(white.start), seed=3)[0]
    loss_at(white, v).backward()
    white.pull()
    eps = 1e-6
    for k in range(len(v)):
        step = eps * torch.eye(len(v), dtype=v.dtype)[k]
        with torch.no_grad():
            slope = (loss_at(white, v + step) - loss_at(white, v - step)) / (2 * eps)
        assert abs(slope - white.v.grad[k]) < 1e-6 * white.v.grad.abs().max()


def test_no_coordinates_without_coefficients(tmp_path):
    times = families.make("fixed", registry.make("ipndm", "logsnr", NOISE, 6), Times(NOISE, T))
    assert Whitened.of(fits.task(times, tmp_path), distance.l2, 20) is None


def test_a_start_that_diverges_leaves_the_coefficients_as_they_are(tmp_path):
    class Overflowing(Net):
        def forward(self, x, t, condition=None):
            return torch.inf * super().forward(x, t, condition)

    white = Whitened(fits.task(lms(), tmp_path, net=Overflowing()), distance.l2, batch_size=20)
    white.begin(0)
    assert torch.equal(white.by_v, torch.eye(len(white.start), dtype=torch.float64))


def test_an_epoch_ends_at_the_mean_of_its_second_half(tmp_path):
    student, met = lms(), []
    clip = student.clip
    student.clip = lambda: (clip(), met.append(parameters(student)))
    adam.fit(fits.task(student, tmp_path), [adam.Phase(("coefficients", "times"), 1)], distance.l2, adam.Adam(10, 1e-3))
    ends = met[1::2]  # of a minibatch: the coefficients are set from v, which clips too, and then all is clipped
    assert len(ends) == 6
    torch.testing.assert_close(parameters(student), torch.stack(ends[-3:]).mean(0), rtol=1e-9, atol=1e-12)


def test_plain_adam_is_torchs_own(tmp_path):
    student, again = lms(), lms()
    phase = [adam.Phase(("coefficients", "times"), 1)]
    task = fits.task(student, tmp_path)
    adam.fit(task, phase, distance.l2, adam.Adam(10, 1e-3, plain=True))
    optimizer = torch.optim.Adam(again.parameters(), 1e-3)
    for index in torch.randperm(60, generator=torch.Generator().manual_seed(0)).split(10):
        some = task.training.take(index)
        optimizer.zero_grad()
        distance.l2(sample(task.denoiser, again(), some.x_T), some.x_0).mean().backward()
        torch.nn.utils.clip_grad_norm_(again.parameters(), 1.0)
        optimizer.step()
        again.clip()
    torch.testing.assert_close(parameters(student), parameters(again), rtol=1e-9, atol=1e-12)


def test_coefficients_gain_more_than_by_plain_adam(tmp_path):
    lows = []
    for plain in (True, False):
        task = fits.task(LMS("ipndm", NOISE, T, 3), tmp_path / str(plain))
        history = adam.fit(task, adam.s4s(10), distance.pseudo_huber, adam.Adam(10, 0.02, plain=plain))
        lows.append(min(row["validation"] for row in history))
    assert lows[1] < 0.9 * lows[0]


def test_a_resumed_phase_goes_on_in_its_coordinates(tmp_path):
    def learn(folder, epochs):
        student = lms()
        adam.fit(fits.task(student, folder), adam.s4s(epochs), distance.l2, adam.Adam(20, 0.02))
        return student

    learn(tmp_path / "a", 2)
    state = Scratch(tmp_path / "a").load("fit")
    assert state["epoch"] == 2
    assert "white" in state
    assert torch.equal(parameters(learn(tmp_path / "a", 4)), parameters(learn(tmp_path / "b", 4)))
