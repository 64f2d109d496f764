import pytest
import torch
from support.problems import NOISES, Gaussian, march, noises, wavy

from s4spipe.runtime.errors import UserError
from s4spipe.sampling.loop import sample
from s4spipe.sampling.tableau import Tableau
from s4spipe.solvers import registry, timesteps
from s4spipe.solvers.dpm_v3 import Statistics


def on_wavy(x, t, condition):
    return wavy(x, t)


def tableau(solver="dpmpp_3m", nfe=5):
    return registry.make(solver, "edm", NOISES["ve"], nfe)


def test_the_loop_is_the_tableaus_definition():
    table, x_T = tableau("unipc_bh2"), noises(scale=80.0)
    y, d = x_T, []
    for i in range(5):
        d.append(wavy(y, table.t_c[i]))
        y = torch.einsum("j,j...->...", table.W[i, : i + 1], torch.stack(d)) + table.c[i] * x_T
    torch.testing.assert_close(sample(on_wavy, table, x_T), y, rtol=1e-12, atol=1e-12)


RECORDED = ["ddim", "unipc_bh2", "heun", "dpm_3s", "parallel_midpoints", "ipndm_afs"]


@pytest.mark.parametrize("key", ["ve", "vp_linear", "flow"])
@pytest.mark.parametrize("solver", RECORDED)
def test_the_tableaus_states_are_those_of_the_loop(solver, key):
    """Of every evaluation, in order, whether it is made alone or beside others; and the sample as the last."""
    noise, shown = NOISES[key], []
    table, x_T = registry.make(solver, "edm", noise, 6), noises(3, scale=noise.sigma_T)

    def denoiser(x, t, condition):
        shown.extend(x.split(len(x_T)))
        return wavy(x, t)

    x_0 = sample(denoiser, table, x_T)
    d = [wavy(x, t) for x, t in zip(shown, table.t_c, strict=True)]
    for i, y in enumerate([*shown, x_0]):
        torch.testing.assert_close(
            table.state(i, x_T, d), y, rtol=1e-12, atol=1e-12
        )  # later predictions change nothing
        torch.testing.assert_close(table.state(i, x_T, d[:i]), y, rtol=1e-12, atol=1e-12)


def test_a_tableaus_state_is_like_the_noise():
    table, x_T = tableau("ipndm_afs"), noises(2)
    d = list(noises(5, 6, seed=1).view(5, 2, 3))
    for i in range(table.nfe + 1):
        exact, single = table.state(i, x_T, d), table.state(i, x_T.float(), [v.float() for v in d])
        assert (exact.dtype, single.dtype) == (torch.float64, torch.float32)
        torch.testing.assert_close(single.double(), exact, rtol=1e-5, atol=1e-4 * exact.abs().max().item())
    empty = x_T.to("meta")
    assert table.state(5, empty, [empty] * 5).device == empty.device


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("solver", RECORDED)
def test_a_recording_is_what_the_denoiser_was_asked_and_answered(solver, dtype):
    table, x_T = tableau(solver, 6), noises(3, scale=80.0).to(dtype)
    asked, answered = [], []

    def denoiser(x, t, condition):
        asked.extend(x.split(len(x_T)))
        answered.extend((out := wavy(x, t)).split(len(x_T)))
        return out

    recording = sample(denoiser, table, x_T, record=True)
    assert torch.equal(recording.x_0, sample(on_wavy, table, x_T))
    assert recording.x_0.dtype == dtype
    assert torch.equal(recording.states[-1].to(dtype), recording.x_0)
    assert {y.dtype for y in recording.states} == {torch.float64}
    for ours, theirs in ((recording.states[:-1], asked), (recording.predictions, answered)):
        assert len(ours) == table.nfe
        assert all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))


def test_gradients_flow_through_a_recording():
    table, x_T = tableau(), noises(2, scale=80.0).requires_grad_()
    recording = sample(on_wavy, table, x_T, record=True)
    slopes = [torch.autograd.grad(x.sum(), x_T, retain_graph=True)[0] for x in (recording.x_0, *recording.predictions)]
    (plain,) = torch.autograd.grad(sample(on_wavy, table, x_T).sum(), x_T)
    torch.testing.assert_close(slopes[0], plain)
    assert all(slope.any() for slope in slopes)


@pytest.mark.parametrize("nfe", [1, 3, 10])
def test_nfe_is_the_number_of_calls(nfe):
    problem = Gaussian(NOISES["ve"])
    sample(problem, tableau(nfe=nfe), noises())
    assert problem.calls == nfe


def test_a_sample_does_not_depend_on_its_batch():
    x_T = noises(64, scale=80.0).float()
    whole = sample(on_wavy, tableau(), x_T)
    for size in (1, 7):
        parts = torch.cat([sample(on_wavy, tableau(), part) for part in x_T.split(size)])
        torch.testing.assert_close(parts, whole, rtol=1e-6, atol=1e-6)


def test_the_condition_reaches_every_call():
    seen = []
    sample(lambda x, t, condition: seen.append(condition) or x, tableau(), noises(), "seven")
    assert seen == ["seven"] * 5


def test_parallel_evaluations_are_one_call_with_the_same_result():
    noise = NOISES["ve"]
    table = registry.build("parallel_midpoints", noise, timesteps.build("edm", noise, 3), nfe=8)
    problem, x_T, condition = Gaussian(noise), noises(5, scale=80.0), torch.arange(5)
    seen = []

    def denoiser(x, t, labels):
        seen.append((len(x), labels.tolist()))
        return problem(x, t) + 0.01 * labels[:, None]

    y = sample(denoiser, table, x_T, condition)
    assert [n for n, _ in seen] == [5, 10, 5, 10, 5, 5]
    assert seen[1][1] == [*range(5), *range(5)]
    expected = march(lambda x, t: problem(x, t) + 0.01 * condition[:, None], table, x_T)
    torch.testing.assert_close(y, expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("solver", ["ddim", "ipndm", "unipc_bh2", "heun", "dpm_3s"])
def test_afs_is_the_solver_whose_first_evaluation_is_the_noise_itself(solver):
    """For data N(0, 1) the analytic first evaluation is exact: the same result for one evaluation less."""
    noise = NOISES["vp_linear"]
    problem, t, x_T = Gaussian(noise, mean=0.0, std=1.0), timesteps.build("edm", noise, 5), noises()
    plain, afs = (registry.build(name, noise, t) for name in (solver, f"{solver}_afs"))
    assert afs.nfe == plain.nfe - 1
    torch.testing.assert_close(sample(problem, afs, x_T), sample(problem, plain, x_T), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("solver", ["ddim", "ipndm", "unipc_bh2", "heun", "dpm_3s", "dpm_v3"])
def test_afs_with_the_mean_is_the_solver_whose_first_evaluation_knows_the_mean_too(solver):
    """For data N(m, 1) it is exact."""
    noise, mean = NOISES["vp_linear"], torch.tensor([0.5, -1.0, 2.0]).double()
    problem, t, x_T = Gaussian(noise, mean=mean, std=1.0), timesteps.build("edm", noise, 5), noises()
    ends = noise.lambda_(torch.tensor([noise.T, noise.t_min]).double())
    known = Statistics(ends, *(value * torch.ones(2, 3).double() for value in (1.0, 0.1, 0.2)), mean)
    plain, afs = (registry.build(name, noise, t, statistics=known) for name in (solver, f"{solver}_afs_mean"))
    assert afs.nfe == plain.nfe - 1
    torch.testing.assert_close(sample(problem, afs, x_T), sample(problem, plain, x_T), rtol=1e-9, atol=1e-9)


def test_the_result_is_like_the_noise():
    for dtype in (torch.float32, torch.float64):
        assert sample(on_wavy, tableau(), noises().to(dtype)).dtype == dtype
    states = []
    sample(lambda x, t, condition: states.append(x.dtype) or x, tableau(), noises().float())
    assert set(states) == {torch.float64}


def test_the_loop_runs_without_data_on_the_meta_device():
    x_T = torch.empty(2, 3, device="meta")
    assert sample(lambda x, t, condition: x / (1 + t), tableau(), x_T).shape == (2, 3)


def test_a_denoiser_may_return_the_same_memory_at_every_call():
    """As a captured CUDA graph does."""
    table, x_T = tableau(), noises(3, scale=80.0)
    memory = torch.empty_like(x_T)
    ours = sample(lambda x, t, condition: memory.copy_(wavy(x, t)), table, x_T, record=True)
    expected = sample(on_wavy, table, x_T, record=True)
    assert torch.equal(ours.x_0, expected.x_0)
    assert all(torch.equal(a, b) for a, b in zip(ours.predictions, expected.predictions, strict=True))


@pytest.mark.parametrize("solver", ["dpmpp_3m", "parallel_midpoints"])
def test_a_denoiser_may_write_into_what_it_is_given(solver):
    table, x_T = tableau(solver, 6), noises(3, scale=80.0)
    before = table.to_dict()

    def denoiser(x, t, condition):
        out = x.copy_(wavy(x, t))
        t.zero_()
        return out

    ours, expected = sample(denoiser, table, x_T, record=True), sample(on_wavy, table, x_T, record=True)
    assert all(torch.equal(a, b) for a, b in zip(ours.states, expected.states, strict=True))
    assert torch.equal(ours.x_0, expected.x_0)
    assert table.to_dict() == before


def test_samples_may_be_single_numbers():
    x_T = noises(4, scale=80.0)[:, 0]

    def denoiser(x, t, condition):
        return torch.tanh(x / (1 + t))

    expected = sample(denoiser, tableau(), x_T[:, None])[:, 0]
    torch.testing.assert_close(sample(denoiser, tableau(), x_T), expected)
    with pytest.raises(UserError, match="not finite .* for 1 of 4 samples, in evaluation 1"):
        sample(lambda x, t, condition: x / (x - x[0]), tableau(), x_T)
    assert sample(denoiser, tableau(), x_T[:0]).shape == (0,)


def test_the_transforms_of_torch_func_pass_through():
    x_T = noises(2, scale=80.0)
    by_row = torch.func.vmap(lambda x: sample(on_wavy, tableau(), x[None], check=False)[0])(x_T)
    torch.testing.assert_close(by_row, sample(on_wavy, tableau(), x_T))
    exact = torch.autograd.functional.jacobian(lambda x: sample(on_wavy, tableau(), x), x_T)
    torch.testing.assert_close(torch.func.jacrev(lambda x: sample(on_wavy, tableau(), x))(x_T), exact)


def test_gradients_match_finite_differences():
    base, x_T = tableau(), noises(scale=80.0)

    def run(c, W, t_c, x_T):
        return sample(on_wavy, Tableau(base.t, t_c, c, W.tril(), base.noise, "x"), x_T)

    inputs = [v.clone().requires_grad_() for v in (base.c, base.W, base.t_c.clamp(max=79.9), x_T)]
    assert torch.autograd.gradcheck(run, inputs, rtol=1e-5, atol=1e-7)
