"""Pipelines of diffusers of every kind, with tiny random parts: a solver is learned for each by all stages, from its
saved folder, and runs in the pipeline itself; a classical table there is diffusers' own scheduler."""

import functools
import inspect
import json

import diffusers
import numpy as np
import pytest
import torch
from support import standins
from support.clone import in_order, run_all
from support.pipeline import ROOT, edit
from support.zoo import ZOO as ALL

import s4spipe
from s4spipe import models
from s4spipe.models.base import prediction
from s4spipe.noise import Flow
from s4spipe.sampling.tableau import Tableau
from s4spipe.scheduler import S4SScheduler
from s4spipe.solvers import registry

pytestmark = pytest.mark.slow

# The first makes no latents, the second needs a package more, and the others take half a minute and more.
LEFT_OUT = ("StableDiffusionLDM3DPipeline", "SkyReelsV2Pipeline", "HunyuanVideo15Pipeline", "HunyuanImagePipeline",
            "Kandinsky3Pipeline")  # fmt: skip
ZOO = {name: make for name, make in ALL.items() if name not in LEFT_OUT}
GUIDE = ROOT / "docs/guide/pipelines.md"
PROMPTS = ["a cat", "the sea", "a dog on a hill"]
NFE = 3
TOY = {
    "nfe": [NFE],
    "classical": ["ddim"],
    "learned": [],
    "refined": ["free"],
    "run": {"batch_size": 3, "micro_batch_size": 3, "device": "cpu"},
    "teacher": {"nfe": 4, "train": 4, "validation": 2},
    "starts": {"free": {"schedules": ["logsnr"], "skip": [0.1]}},
    "learner_defaults": {"pairs": 4, "validation_pairs": 2, "batch_size": 4},
    "learners": {"free": {"validation_pairs": 2, "batch_size": 4, "epochs": 1}},
    "refine": {"pairs": 4, "validation_pairs": 2, "steps": 1},
    "sample": {"count": 3},
    "reference": {"nfe": 3, "count": 3, "schedule": "logsnr"},
    "classical_schedules": {"ddim": "logsnr"},
    "prompts": "inputs/prompts/mine.txt",
}


# Why no solver is learned for a pipeline.
SINGLE_STEP = "cannot be called for a single step or for none"
REFUSED = {
    "StableUnCLIPPipeline": "prepares latents before it encodes its prompts",
    "AllegroPipeline": SINGLE_STEP,
    "LDMTextToImagePipeline": "has no prepare_latents",
    "OmniGenPipeline": "has no encode_prompt",
    "TextToVideoSDPipeline": "must return the shape of its input",
    "IFPipeline": "its features are the same whatever the solver",
    "StableAudio3Pipeline": "its features are the same whatever the solver",  # these random parts clip all sounds
}


def table():
    """What the other tests here show, as docs/guide/pipelines.md has it; `python -m test_zoo` in tests/ writes it."""
    rows = [f"| `{name}` | yes | {REFUSED.get(name, 'yes')} |" for name in sorted(ZOO)]
    return "\n".join(
        ["| pipeline | a classical table is diffusers' own | learned for by all stages |", "|---|---|---|", *rows]
    )


def test_the_guide_has_the_table():
    assert table() in GUIDE.read_text(encoding="utf-8"), "run python -m test_zoo in tests/"


@functools.cache
def made(name):
    torch.manual_seed(0)
    return ZOO[name]()


def test_at_least_forty_kinds_of_pipelines_are_learned_for():
    assert set(REFUSED) <= set(ZOO)
    assert len(set(ZOO) - set(REFUSED)) >= 40


class Steps:
    """The samples that a pipeline gives its scheduler, and what it gets."""

    def __init__(self, scheduler):
        self.given, self.got, own = [], [], scheduler.step

        def step(output, t, sample, **rest):
            self.given.append(sample.clone())
            output = output[:, : sample.shape[1]] if output.ndim == 4 else output  # a learned variance
            after = own(output, t, sample, **rest)
            self.got.append((after[0] if isinstance(after, tuple) else after.prev_sample).clone())
            return after

        scheduler.step = step


def run(pipe, call, nfe, prompts):
    steps = Steps(pipe.scheduler)
    latents = {"output_type": "latent"} if "output_type" in inspect.signature(pipe.__call__).parameters else {}
    pipe(**latents, prompt=prompts, **call, num_inference_steps=nfe, generator=torch.manual_seed(1))
    return steps


@pytest.mark.parametrize("name", ZOO)
def test_a_classical_table_is_diffusers_own_scheduler(name):
    """DDIM or Euler's method, on the same steps, in the pipeline."""
    pipe, call = made(name)
    own = pipe.scheduler
    try:
        flow = prediction.read(own.config).flow
        if not flow:
            options = {"clip_sample": False, "set_alpha_to_one": False, "steps_offset": 1, "thresholding": False,
                       "timestep_spacing": "leading"}  # fmt: skip
            video = isinstance(own, diffusers.CogVideoXDDIMScheduler)  # which has another table of noise
            kind = diffusers.CogVideoXDDIMScheduler if video else diffusers.DDIMScheduler
            pipe.scheduler = kind.from_config(own.config, **options)
        elif not isinstance(own, diffusers.FlowMatchEulerDiscreteScheduler):
            pipe.scheduler = diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0)
        theirs = pipe.scheduler
        expected = run(pipe, call, 4, PROMPTS[0])
        if flow:
            sigmas = theirs.sigmas.double()
            t = 1 - sigmas if theirs.config.invert_sigmas else sigmas
            noise = Flow(t_min=1e-6, T=1 - 1e-6)
            t[0], t[-1] = min(float(t[0]), noise.T), noise.t_min
        else:
            noise = prediction.noise_schedule(own.config)
            t = torch.cat([theirs.timesteps.double(), torch.zeros(1, dtype=torch.float64)])
        pipe.scheduler = S4SScheduler.from_tableau(registry.build("ddim", noise, t), own.config)
        ours = run(pipe, call, 4, PROMPTS[0])
    finally:
        pipe.scheduler = own
    for a, b in zip(ours.got, expected.got, strict=True):
        assert (a - b).abs().max() < 1e-4 * b.abs().max()
    assert (ours.got[-1] - ours.given[0]).abs().max() > 0.1 * ours.given[0].abs().max()  # something was sampled


@pytest.mark.parametrize("name", ZOO)
def test_a_solver_is_learned_by_all_stages_and_runs_in_the_pipeline(name, clone):
    pipe, call = made(name)
    pipe.save_pretrained(clone / "models/mine")
    standins.inception(clone / "models/inception.pt", 16)
    (clone / "inputs/prompts/mine.txt").write_text("\n".join(PROMPTS) + "\n")
    (clone / "features.py").write_text(FEATURES)
    guidance = call.get("guidance_scale", 1.0)
    arguments = {key: value for key, value in call.items() if key != "guidance_scale"} or {"num_images_per_prompt": 1}
    model = {"name": "mine", "kind": "diffusers", "weights": "models/mine", "condition": "prompts",
             "guidance": guidance, "pipeline": arguments}  # fmt: skip
    seeing = {"network": "callable", "source": "features:seen", "weights": "features.py"}
    judging = {"network": "callable", "source": "features:judge", "features": "features.py"}
    edit(clone, **TOY, model=model, perceptual=seeing, fid=judging)
    if name in REFUSED:
        assert REFUSED[name] in run_all(clone, *(stage.cmd for stage in in_order(clone)), code=1)
        return
    run_all(clone, *(stage.cmd for stage in in_order(clone)))
    numbers = json.loads((clone / "runs/mine/evaluations/free-3/metrics.json").read_text())
    assert np.isfinite(numbers["fid"])
    assert np.isfinite(numbers["teacher_distance"])
    table = Tableau.load(clone / "runs/mine/solvers/free-3/solver.json")
    assert table.c_0 != 1

    places = {"weights": str(clone / "models/mine"), "embeddings": str(clone / "runs/mine/prompts.safetensors")}
    denoiser = models.load(model | places)
    own = type(pipe).from_pretrained(clone / "models/mine")
    own.set_progress_bar_config(disable=True)
    with s4spipe.apply(own, table):
        kept = own.scheduler.run.first
        noises = []
        keep = kept.keep
        kept.keep = lambda x, y: (noises.append(x.clone()), keep(x, y))[1]
        steps = run(own, call, NFE, [PROMPTS[2]])
    ours = s4spipe.sample(denoiser, table, denoiser.grid.image(noises[0].float()), torch.tensor([2]))
    theirs = denoiser.grid.image(steps.got[-1])
    assert (ours - theirs).abs().max() < 1e-3 * theirs.abs().max()


FEATURES = """
import torch


class Features(torch.nn.Module):
    def __init__(self, seed):
        super().__init__()
        self.places = torch.randn(12, 48, generator=torch.Generator().manual_seed(seed))

    def forward(self, images):
        small = torch.nn.functional.adaptive_avg_pool2d(images.mean(1, keepdim=True), (6, 8)).flatten(1)
        return torch.tanh(small @ self.places.T.to(small))


def seen():
    return Features(0)


def judge():
    return Features(1)
"""


if __name__ == "__main__":
    before, _, after = GUIDE.read_text(encoding="utf-8").partition("| pipeline | a classical")
    _, _, after = after.partition("\n\n")
    GUIDE.write_text(f"{before}{table()}\n\n{after}", encoding="utf-8")
