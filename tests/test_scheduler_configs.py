"""What a scheduler's config says of a model's training: every class of the installed diffusers, and every key."""

import inspect
import json

import diffusers
import pytest
import torch
from support.pipes import SCALED

from s4spipe.models.base import prediction
from s4spipe.models.base.prediction import CLASSES, FLOW_SAMPLING, ONLY, SAMPLING, TRAINING, noise_schedule, read
from s4spipe.noise import Flow, VPDiscrete
from s4spipe.runtime.errors import UserError
from s4spipe.scheduler import S4SScheduler

EVERY = sorted(
    name for name in dir(diffusers) if name.endswith("Scheduler") and inspect.isclass(getattr(diffusers, name))
)


def own_table(scheduler):
    """alphas_cumprod of a scheduler of diffusers; after rescaling, some have 0 at the end and others 2^-24."""
    table = scheduler.alphas_cumprod.double()
    return torch.where(table == 0, 2.0**-24 if table[-2] > 2.0**-24 else table[-2] / 4, table)


def made(name, **options):
    try:
        return getattr(diffusers, name)(**options)
    except (ImportError, TypeError) as error:  # needs a package, or arguments that have no default
        pytest.skip(f"{name}() cannot be made: {str(error).strip().splitlines()[0]}")


def config_of(scheduler):
    """As from_pretrained gives it."""
    return json.loads(scheduler.to_json_string())


@pytest.mark.parametrize("name", EVERY)
def test_every_class_of_diffusers_is_obeyed_or_refused_by_its_name(name, record_property):
    if name not in CLASSES:
        with pytest.raises(UserError, match=f"class '{name}'.* not understood"):
            read({"_class_name": name, "beta_schedule": "linear"})
        record_property("scheduler classes refused", 1)
        return
    scheduler = made(name)
    training = read(config_of(scheduler))
    record_property("scheduler classes obeyed", 1)
    if CLASSES[name] == "flow":
        assert training == prediction.Training(Flow(), "flow_prediction", 1000.0)
        return
    assert training.prediction == "epsilon"
    ours = torch.tensor(training.noise.alphas_cumprod, dtype=torch.float64)
    torch.testing.assert_close(ours, own_table(scheduler), rtol=1e-4, atol=1e-8)


@pytest.mark.parametrize("name", EVERY)
def test_a_config_without_a_class_is_never_taken_for_another_one(name):
    """The config of a scheduler that was made in Python does not name its class."""
    config = dict(made(name).config)
    assert "_class_name" not in config
    try:
        training = read(config)
    except UserError:
        assert name not in CLASSES or name == "FlowMatchHeunDiscreteScheduler"  # its keys are also FlowMap's
        return
    assert training.flow == (CLASSES.get(name) == "flow")
    if not training.flow and name != "CogVideoXDDIMScheduler":
        ours = torch.tensor(training.noise.alphas_cumprod, dtype=torch.float64)
        torch.testing.assert_close(ours, own_table(getattr(diffusers, name)()), rtol=1e-4, atol=1e-8)


@pytest.mark.parametrize("name", sorted(set(EVERY) & set(CLASSES)))
def test_every_key_of_the_known_classes_is_known(name):
    keys = [key for key in inspect.signature(getattr(diffusers, name).__init__).parameters if key != "self"]
    if getattr(diffusers, name).__module__.endswith("_objects"):
        pytest.skip(f"{name} needs a package that is not installed")
    known = TRAINING | SAMPLING | set(ONLY) | (FLOW_SAMPLING if CLASSES[name] == "flow" else set())
    assert set(keys) - {"kwargs"} <= known


TABLES = [
    {},
    SCALED,
    {"beta_schedule": "squaredcos_cap_v2"},
    {"trained_betas": [0.1, 0.2, 0.3], "num_train_timesteps": 3},
    {**SCALED, "num_train_timesteps": 500},
    {**SCALED, "prediction_type": "v_prediction"},
    {**SCALED, "rescale_betas_zero_snr": True},
    {**SCALED, "snr_shift_scale": 1.0},
    {**SCALED, "snr_shift_scale": 4.0, "rescale_betas_zero_snr": True},
]


def takes(name, options):
    return set(options) <= set(inspect.signature(getattr(diffusers, name).__init__).parameters)


@pytest.mark.parametrize(
    ("name", "options"),
    [(n, o) for n in EVERY if CLASSES.get(n) == "vp" for o in TABLES if takes(n, o)],
    ids=str,
)
def test_a_table_is_that_of_diffusers(name, options, record_property):
    scheduler = made(name, **options)
    training = read(config_of(scheduler))
    assert training.prediction == options.get("prediction_type", "epsilon")
    theirs, ours = own_table(scheduler), torch.tensor(training.noise.alphas_cumprod, dtype=torch.float64)
    torch.testing.assert_close(ours, theirs, rtol=2e-3, atol=1e-8)  # diffusers' are in float32
    record_property("tables of alphas compared", 1)


def test_a_table_rescaled_to_zero_snr_has_its_entries():
    """0.0030 at t = 900, where the table as it was has 0.0142; the last is 2^-24."""
    config = {**SCALED, "_class_name": "DDIMScheduler"}
    plain, rescaled = (
        noise_schedule(config | {"rescale_betas_zero_snr": flag}).alphas_cumprod for flag in (False, True)
    )
    assert (round(plain[900], 4), round(rescaled[900], 4)) == (0.0142, 0.0030)
    assert (rescaled[0], rescaled[-1]) == (pytest.approx(plain[0], rel=1e-12), 2.0**-24)


def test_the_missing_keys_of_a_class_have_its_own_defaults():
    shifted = noise_schedule({"_class_name": "CogVideoXDDIMScheduler", **SCALED})
    theirs = diffusers.CogVideoXDDIMScheduler(beta_start=0.00085, beta_end=0.012).alphas_cumprod.double()
    torch.testing.assert_close(torch.tensor(shifted.alphas_cumprod, dtype=torch.float64), theirs, rtol=1e-4, atol=1e-8)
    assert noise_schedule({"_class_name": "HeunDiscreteScheduler"}) == noise_schedule(
        {"beta_schedule": "linear", "beta_start": 0.00085, "beta_end": 0.012}
    )


def test_flow_models():
    flow = prediction.Training(Flow(), "flow_prediction", 1000.0)
    assert read({"use_flow_sigmas": True}) == flow
    assert read(diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0).config) == flow
    assert read({"_class_name": "FlowMatchEulerDiscreteScheduler", "num_train_timesteps": 500}).time_scale == 500
    config = {"_class_name": "UniPCMultistepScheduler", "use_flow_sigmas": True, "prediction_type": "flow_prediction"}
    assert read(config | {"flow_shift": 3.0, "shift": 3.0, "base_shift": 0.5}) == flow


@pytest.mark.parametrize("name", ["v_prediction", "epsilon", "sample", "flow_prediction"])
def test_what_a_network_predicts_on_flow_noise_is_what_diffusers_takes_it_for(name):
    scheduler = diffusers.DPMSolverMultistepScheduler(use_flow_sigmas=True, prediction_type=name)
    scheduler.set_timesteps(5)
    scheduler._step_index = 2
    x, out = torch.randn(2, 3, 4, 4), torch.randn(2, 3, 4, 4)
    theirs, sigma = scheduler.convert_model_output(out, sample=x), scheduler.sigmas[2]
    training = read(scheduler.config)
    assert training.flow
    torch.testing.assert_close(prediction.X0[training.prediction](x, out, 1 - sigma, sigma), theirs)


def test_a_predicted_image_of_old_configs():
    assert read({"beta_schedule": "linear", "predict_epsilon": False}).prediction == "sample"


@pytest.mark.parametrize(
    ("config", "says"),
    [
        ({}, "neither which betas .* nor that it is a flow model"),
        ({"num_train_timesteps": 1000, "shift": 1.0}, "`_class_name`"),
        ({"_class_name": "MySamplerScheduler"}, "class 'MySamplerScheduler' are not understood"),
        ({"_class_name": ["a"]}, r"class \['a'\] are not understood"),
        ({"_class_name": "EDMEulerScheduler", "sigma_data": 0.5}, "class 'EDMEulerScheduler'"),
        ({**SCALED, "sigma_data": 0.5}, "'sigma_data': 0.5, which is not understood"),
        ({**SCALED, "new_key": 1}, "'new_key': 1, which is not understood"),
        ({**SCALED, "timestep_type": "continuous"}, "'timestep_type': 'continuous', which .* only 'discrete' is"),
        ({**SCALED, "shift": 3.0}, "both that of a flow model and of one with betas: shift: 3.0"),
        ({**SCALED, "invert_sigmas": True}, "false for a model that is no flow model, got True"),
        ({"_class_name": "FlowMatchEulerDiscreteScheduler", "invert_sigmas": 1}, "true or false for invert_sigmas"),
        ({"_class_name": "FlowMatchEulerDiscreteScheduler", **SCALED}, "both .* beta_schedule: 'scaled_linear'"),
        ({"_class_name": "FlowMatchEulerDiscreteScheduler", "prediction_type": "epsilon"}, "both .* prediction_type"),
        ({**SCALED, "prediction_type": "flow_prediction"}, "'flow_prediction' but not use_flow_sigmas: true"),
        ({**SCALED, "prediction_type": "eps"}, "unknown prediction_type 'eps'.* 'epsilon'"),
        ({**SCALED, "prediction_type": 3}, "unknown prediction_type 3"),
        ({"beta_schedule": "linera"}, "unknown beta_schedule 'linera': did you mean 'linear'"),
        ({"beta_schedule": ["linear"]}, r"unknown beta_schedule \['linear'\]"),
        ({**SCALED, "beta_start": "0.1"}, "number between 0 and 1 for beta_start, got '0.1'"),
        ({**SCALED, "beta_end": float("nan")}, "for beta_end, got nan"),
        ({**SCALED, "beta_end": torch.tensor(0.012)}, r"for beta_end, got tensor\(0.0120\)"),
        ({**SCALED, "num_train_timesteps": 1e3}, "num_train_timesteps .* must be a whole number, got 1000.0"),
        ({**SCALED, "num_train_timesteps": 10**12}, "num_train_timesteps .* at most 1000000"),
        ({**SCALED, "rescale_betas_zero_snr": "yes"}, "true or false for rescale_betas_zero_snr, got 'yes'"),
        ({"trained_betas": "all"}, "list of numbers for trained_betas, got 'all'"),
        ({"trained_betas": [0.5, -1.0, 2.0]}, "alphas_cumprod must be"),
        ({**SCALED, "snr_shift_scale": 0}, "positive number for snr_shift_scale, got 0"),
        ({3: 1, **SCALED}, "a key that is not text: 3"),
        (None, "a scheduler's config is needed, .* got NoneType"),
        (diffusers.DDIMScheduler(), "a scheduler's config is needed, .* got DDIMScheduler"),
    ],
)
def test_a_config_that_is_not_understood_is_refused(config, says):
    with pytest.raises(UserError, match=says) as caught:
        read(config)
    assert len(str(caught.value)) <= 400


def test_a_scheduler_that_was_made_from_a_config_of_another_kind():
    """diffusers keeps the keys that a class does not know; they tell what the model was trained with."""
    edm = diffusers.DDIMScheduler.from_config(config_of(diffusers.EDMEulerScheduler()))
    with pytest.raises(UserError, match="'rho': 7.0, which is not understood|sigma_"):
        read(edm.config)
    forgotten = diffusers.UniPCMultistepScheduler.from_config(config_of(diffusers.FlowMatchEulerDiscreteScheduler()))
    with pytest.raises(UserError, match="both that of a flow model and of one with betas"):
        read(forgotten.config)
    video = diffusers.CogVideoXDDIMScheduler(rescale_betas_zero_snr=True)
    kept = diffusers.DDIMScheduler.from_config(config_of(video))
    ours = torch.tensor(noise_schedule(kept.config).alphas_cumprod, dtype=torch.float64)
    torch.testing.assert_close(ours, own_table(video), rtol=2e-3, atol=1e-8)


def test_a_solvers_own_config_says_the_same_again():
    for config in (
        {**SCALED, "prediction_type": "v_prediction", "rescale_betas_zero_snr": True, "variance_type": "learned_range"},
        {"_class_name": "FlowMatchEulerDiscreteScheduler", "num_train_timesteps": 500},
    ):
        own = S4SScheduler.from_classical("ddim", "time_uniform", 4, config).config
        again, first = read(own), read(config)
        assert (again.prediction, again.time_scale) == (first.prediction, first.time_scale)
        assert own.variance_type == config.get("variance_type")
        if isinstance(first.noise, VPDiscrete):
            assert again.noise == first.noise
