import pytest
import torch
from problems import NOISES, Gaussian, march, noises, wavy

from s4spipe import classical, steps
from s4spipe.sampling import sample
from s4spipe.tableau import Tableau


def on_wavy(x, t, condition):
    return wavy(x, t)


def tableau(solver="dpmpp_3m", nfe=5):
    noise = NOISES["ve"]
    return classical.build(solver, noise, steps.build("edm", noise, nfe))


def test_the_loop_is_the_tableaus_definition():
    table, x_T = tableau("unipc_bh2"), noises(scale=80.0)
    y, d = x_T, []
    for i in range(5):
        d.append(wavy(y, table.t_c[i]))
        y = torch.einsum("j,j...->...", table.W[i, : i + 1], torch.stack(d)) + table.c[i] * x_T
    torch.testing.assert_close(sample(on_wavy, table, x_T), y, rtol=1e-12, atol=1e-12)


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
    table = classical.build("parallel_midpoints", noise, steps.build("edm", noise, 3), nfe=8)
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
    problem, t, x_T = Gaussian(noise, mean=0.0, std=1.0), steps.build("edm", noise, 5), noises()
    plain, afs = (classical.build(name, noise, t) for name in (solver, f"{solver}_afs"))
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


def test_gradients_match_finite_differences():
    base, x_T = tableau(), noises(scale=80.0)

    def run(c, W, t_c, x_T):
        return sample(on_wavy, Tableau(base.t, t_c, c, W.tril(), base.noise, "x"), x_T)

    inputs = [v.clone().requires_grad_() for v in (base.c, base.W, base.t_c.clamp(max=79.9), x_T)]
    assert torch.autograd.gradcheck(run, inputs, rtol=1e-5, atol=1e-7)
