"""Solvers as lists of decisions: equal to classical solvers, and of the order that their steps say."""

import json
import math

import pytest
import torch
from support.problems import NOISES, Gaussian, march, noises

from s4spipe.learning.genome import FORMS, Genome, Step, of_classical
from s4spipe.noise import VE
from s4spipe.runtime.errors import UserError
from s4spipe.solvers import registry, timesteps

NAMES = ["ddim", "dpmpp_2m", "dpm_2m", "unip_bh1_3", "unip_bh2_2"]
NAMES += [f"{name}_{k}" for name in ("adams_bashforth", "deis_log", "unipc_bh1", "unipc_bh2") for k in (1, 2, 3, 4)]
NAMES += ["unipc_bh2_eps_3", "unipc_bh1_eps_2", "dpmpp_2m_afs", "unipc_bh2_3_afs", "deis_log_3_afs"]


def same(ours, theirs):
    torch.testing.assert_close(ours.t, theirs.t, rtol=0, atol=0)
    for key in ("t_c", "c_0", "c", "W"):
        torch.testing.assert_close(getattr(ours, key), getattr(theirs, key), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("key", NOISES)
@pytest.mark.parametrize("name", NAMES)
def test_classical_solvers_are_genomes(name, key):
    noise = NOISES[key]
    t = timesteps.build("logsnr", noise, 6)
    genome = of_classical(name, t.tolist())
    assert genome.nfe == 6 - name.endswith("_afs")
    same(genome.tableau(noise), registry.build(name, noise, t))


def test_the_relaxation_scales_the_first_derivative_by_the_papers_formula():
    """A step of order 2 with both predictions, written out: f^(1) of two points times 1 + rho h."""
    noise, rho = NOISES["vp_linear"], 0.3
    t = timesteps.build("logsnr", noise, 2)
    lam, alpha, sigma = noise.lambda_(t).tolist(), noise.alpha(t).tolist(), noise.sigma(t).tolist()
    h = lam[2] - lam[1]
    net = Gaussian(noise)
    x_T = noises(3)
    d_0 = net(x_T, t[0])
    x_1 = sigma[1] / sigma[0] * x_T + alpha[1] * -math.expm1(lam[0] - lam[1]) * d_0
    d_1 = net(x_1, t[1])
    e_0, e_1 = (x_T - alpha[0] * d_0) / sigma[0], (x_1 - alpha[1] * d_1) / sigma[1]
    slope = (e_1 - e_0) / (lam[1] - lam[0]) * (1 + rho * h)
    x_2 = alpha[2] / alpha[1] * x_1 - sigma[2] * (math.expm1(h) * e_1 + (math.expm1(h) - h) * slope)
    genome = Genome(tuple(t.tolist()), (Step(), Step(2, "noise", rho=rho)))
    torch.testing.assert_close(march(net, genome.tableau(noise), x_T), x_2, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("scale", ["exact", "bh1", "bh2"])
@pytest.mark.parametrize(("order", "corrects"), [(1, False), (2, False), (3, False), (1, True), (2, True)])
def test_steps_of_mixed_predictions_keep_their_order(scale, order, corrects):
    """Data and noise prediction in turn. A predictor of order 3 has its first step corrected, since one step of order 1
    leaves an error of h^2; and rho adds one of h^3 to every step."""
    noise = VE(0.05, 5.0)
    problem, x_T = Gaussian(noise), noises(3, scale=5.0)
    rho = 0.2 if order == 2 and not corrects else 0.0
    errors = []
    for n in (64, 128):
        t = timesteps.build("logsnr", noise, n)
        steps = tuple(Step(order, FORMS[i % 2], scale, rho, corrects or (order == 3 and i == 0)) for i in range(n))
        end = march(problem, Genome(tuple(t.tolist()), steps).tableau(noise), x_T)
        errors.append((end - problem.solution(x_T, noise.t_min)).norm().item())
    assert math.log2(errors[0] / errors[1]) > order + corrects - 0.25


def test_a_genome_is_plain_data():
    t = timesteps.build("edm", VE(), 4).tolist()
    genome = Genome(tuple(t), (Step(), Step(2, "noise", "bh1", 0.1, True), Step(3), Step(4)), True)
    assert Genome.from_dict(json.loads(json.dumps(genome.to_dict()))) == genome


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"afs": 1}, "is a mapping of t, steps and afs"),
        ({"more": 1}, "is a mapping of t, steps and afs"),
        ({"t": [80.0, "x", 0.002]}, "t must be a list of times"),
        ({"steps": 3}, "steps must be a list"),
        ({"steps": [{"order": 1}]}, "is a mapping of order, form, scale, rho, corrects"),
        ({"order": 5}, "order of a genome's step must be at most 4"),
        ({"form": "velocity"}, "unknown form of a genome's step"),
        ({"scale": "bh3"}, "unknown scale of a genome's step"),
        ({"rho": "a"}, "needs a number rho"),
        ({"corrects": 0}, "needs a number rho, and corrects"),
    ],
)
def test_other_data_are_refused(change, says):
    data = of_classical("ddim", [80.0, 1.0, 0.002]).to_dict()
    where = data if set(change) & {"t", "steps", "afs", "more"} else data["steps"][1]
    where |= change
    with pytest.raises(UserError, match=says):
        Genome.from_dict(data)


@pytest.mark.parametrize(
    ("genome", "says"),
    [
        (Genome((80.0, 1.0, 0.002), (Step(),)), "a time more than steps, .* got 3 times and 1 steps"),
        (Genome((80.0, 0.002), (Step(),), True), "at least one evaluation"),
        (Genome((80.0, 1.0, 2.0), (Step(), Step())), "fall strictly"),
    ],
)
def test_genomes_that_are_no_solver_are_refused(genome, says):
    with pytest.raises(UserError, match=says):
        genome.tableau(VE())


@pytest.mark.parametrize("name", ["ipndm_3", "heun", "dpmpp_2m_sde", "deis_tab"])
def test_other_solvers_are_no_genomes(name):
    with pytest.raises(UserError, match=f"^{name} is no genome: choose from ddim, dpmpp_2m"):
        of_classical(name, [80.0, 1.0, 0.002])
