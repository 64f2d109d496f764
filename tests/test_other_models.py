"""Every preset, on a small stand-in for its model, and every other kind of model: all stages of the pipeline."""

import csv
import json
import shutil

import numpy as np
import pytest
from ruamel.yaml import YAML
from support import pipes, standins
from support.clone import in_order, run_all
from support.pipeline import edit
from support.zoo import ZOO

from s4spipe.pipeline import layout, presets
from s4spipe.sampling.tableau import Tableau

SIZES = ("height", "width", "num_frames")
pytestmark = pytest.mark.slow

TOY = {
    "nfe": [3],
    "classical": ["ddim"],
    "refined": ["free_bands"],
    "run": {"batch_size": 3, "micro_batch_size": 2, "device": "cpu"},
    "gits": {"grid": 6, "noises": 3},
    "teacher": {"nfe": 4, "train": 4, "validation": 2},
    "starts": {"free_bands": {"schedules": ["logsnr"]}},
    "learner_defaults": {"pairs": 4, "validation_pairs": 2, "batch_size": 4, "warmup_epochs": 1, "alternations": 1},
    "learners": {"s4s": {"pairs": 4, "validation_pairs": 2, "batch_size": 4, "epochs": 1},
                 "free_bands": {"validation_pairs": 2, "batch_size": 4, "epochs": 1, "channels": "own"}},
    "refine": {"pairs": 4, "validation_pairs": 2, "steps": 1},
    "sample": {"count": 5},
    "reference": {"nfe": 3, "count": 5},
}  # fmt: skip
STANDINS = {
    "cifar10": standins.edm,
    "ffhq64": standins.edm,
    "afhqv2_64": standins.edm,
    "lsun_bedroom": lambda folder: pipes.saved(pipes.latent_unconditional(), folder),
    "imagenet256": standins.class_conditional_ldm,
    "mscoco": lambda folder: pipes.saved(pipes.stable_diffusion(), folder),
    "dit_xl_256": lambda folder: pipes.saved(pipes.classes()[0], folder),
    "sd15": lambda folder: pipes.saved(pipes.stable_diffusion(), folder),
    "sdxl": lambda folder: pipes.saved(pipes.stable_diffusion_xl(), folder),
    "sd3": lambda folder: pipes.saved(pipes.stable_diffusion_3(), folder),
    "sd35": lambda folder: pipes.saved(pipes.stable_diffusion_3(), folder),
}
# Presets for pipelines without an adapter of their own, and those that are given arguments.
GENERAL = {
    "flux_dev": lambda: (pipes.flux_pipeline(True), {"height": 8, "width": 8}),
    "flux_schnell": lambda: (pipes.flux_pipeline(), {"height": 8, "width": 8}),
    "flux2_klein": ZOO["Flux2KleinPipeline"],
    "pixart_sigma": ZOO["PixArtSigmaPipeline"],
    "sana": ZOO["SanaPipeline"],
    "qwen_image": ZOO["QwenImagePipeline"],
    "z_image": ZOO["ZImagePipeline"],
    "wan21": ZOO["WanPipeline"],
    "ltx_video": ZOO["LTXPipeline"],
}
# These learn as cifar10, sd15, DDPM, sd3 or imagenet256 do: their models are of the same kinds. Here they are sampled
# and measured.
LEARNED_ELSEWHERE = {"ffhq64", "afhqv2_64", "mscoco", "lsun_bedroom", "sdxl", "dit_xl_256", "sd35", *GENERAL}
LEARNED = ("s4s", "s4s_alt", "free_bands")
NONE = {"condition": "none"}
OTHERS = {
    "DDPM": (lambda f: pipes.saved(pipes.unconditional()[0], f), {"kind": "diffusers", **NONE}),
    "SD, v-prediction": (lambda f: pipes.saved(pipes.stable_diffusion("v_prediction"), f),
                         {"kind": "diffusers", "condition": "prompts", "guidance": 2.0}),
    "Flux": (lambda f: pipes.saved(pipes.flux_pipeline(), f), {"kind": "diffusers", "condition": "prompts", "size": 8}),
    "EDM's interface": (lambda f: own_code(f, "edm_like"),
                        {"kind": "callable", "source": "my_model:edm_like", "guidance": 2.0}),
    "diffusers' interface": (lambda f: own_code(f, "unet"), {"kind": "callable", "source": "my_model:unet", **NONE}),
}  # fmt: skip
OWN_CODE = """
import torch
from diffusers import UNet2DModel


class Net(torch.nn.Module):
    img_channels, img_resolution, label_dim = 3, 8, 4

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.layer = torch.nn.Conv2d(3, 3, 3, padding=1)
        self.labels = torch.nn.Linear(4, 3)

    def forward(self, x, sigma, class_labels=None):
        x = self.layer(x / (1 + sigma.view(-1, 1, 1, 1)))
        return x if class_labels is None else x + self.labels(class_labels)[:, :, None, None]


def edm_like():
    return Net()


def features(weights):
    torch.manual_seed(1)
    return torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.Tanh(), torch.nn.Flatten(), torch.nn.Linear(144, 16))


def unet(weights):
    torch.manual_seed(0)
    return UNet2DModel(8, 3, 3, block_out_channels=(8,), norm_num_groups=4, layers_per_block=1,
                       down_block_types=("DownBlock2D",), up_block_types=("UpBlock2D",))
"""


def own_code(path, name):
    path.parent.mkdir(exist_ok=True)
    (path.parent.parent / "my_model.py").write_text(OWN_CODE)
    path.write_text(OWN_CODE)
    return path


def check_results(project, model, calls, learned=LEARNED):
    rows = list(csv.DictReader((project / f"runs/{model}/report/fid.csv").read_text().splitlines()))
    assert [(row["solver"], row["nfe"]) for row in rows] == [
        ("teacher", "4"), *((name, "3") for name in ("ddim", *learned))
    ]  # fmt: skip
    for row in rows:
        assert np.isfinite(float(row["fid"]))
        assert calls is None or int(row["network_calls"]) == calls * int(row["nfe"])
    assert [path.name for path in (project / "runs").iterdir()] == [model]
    return rows


@pytest.mark.parametrize("name", [*STANDINS, *GENERAL])
def test_every_stage_runs_on_a_stand_in_for_a_presets_model(name, clone):
    presets.switch(name, clone / "params.yaml")
    settings = YAML(typ="safe").load(clone / "params.yaml")
    weights = clone / settings["model"]["weights"]
    weights.parent.mkdir(exist_ok=True)
    if name in GENERAL:
        pipe, call = GENERAL[name]()
        pipes.saved(pipe, weights)
        own = settings["model"].get("pipeline", {}).keys()  # but for the size, as the preset has them
        edit(clone, model={"pipeline": {key: value for key, value in call.items() if key not in own or key in SIZES}})
    else:
        STANDINS[name](weights)
    elsewhere = name in LEARNED_ELSEWHERE
    edit(clone, **TOY | ({"learned": [], "refined": []} if elsewhere else {}), fetch=[])
    standins.inception(clone / settings["fid"]["features"])
    standins.alexnet(clone / settings["perceptual"]["weights"])
    if (real := settings["fid"]["real"]) != layout.NONE:
        standins.statistics(clone / real)
    if (prompts := settings["prompts"]) != layout.NONE:
        (clone / prompts).write_text("a cat\nthe sea\na dog on a hill\n")
    stages = in_order(clone)
    said = run_all(clone, *(stage.cmd for stage in stages))
    for stage in stages:
        for path in [*stage.deps, *stage.outs]:
            assert (clone / path.def_path).exists(), f"{stage.name}: {path.def_path}"
    guided = settings["model"]["guidance"] != 1
    calls = {"flux2_klein": None, "qwen_image": 2}.get(name, 2 if guided else 1)
    check_results(clone, name, calls, () if elsewhere else LEARNED)
    if settings["model"]["precision"] != "float32":
        assert "model.precision: bfloat16 needs a GPU; this is a CPU, so the network runs in float32" in said
    if elsewhere:
        return
    solver = json.loads((clone / f"runs/{name}/solvers/s4s_alt-3/solver.json").read_text())
    assert solver["meta"]["model"]["kind"] == settings["model"]["kind"]
    assert len(solver["meta"]["model"]["fingerprint"]) == 16


@pytest.mark.parametrize("name", OTHERS)
def test_every_stage_runs_on_other_models(name, clone):
    make, model = OTHERS[name]
    make(clone / "models" / "mine")
    standins.clip(clone / "models" / "clip")
    standins.inception(clone / "models/inception.pt", 16)
    rng = np.random.default_rng(0)
    np.save(clone / "data/real.npy", rng.integers(0, 256, (20, 3, 8, 8), dtype=np.uint8))
    settings = TOY | {"sample": {"count": 20}}
    edit(clone, **settings)
    prompted, own = model.get("condition") == "prompts", {"network": "callable", "source": "my_model:features"}
    seeing = {"network": "inception", "features": "models/inception.pt"}
    if model.get("source") == "my_model:edm_like":
        seeing = own | {"features": "my_model.py"}
        edit(clone, perceptual=own | {"weights": "my_model.py"}, learner_defaults={"distance": "perceptual"})
    edit(clone, model=model | {"name": "mine", "weights": "models/mine"},
         prompts="inputs/prompts/examples.txt" if prompted else layout.NONE,
         fid={**seeing, "real": "data/real.npy", **({"clip": "models/clip"} if prompted else {})},
         starts={name: {"schedules": ["logsnr"]} for name in ("s4s", "s4s_alt")}, reference={"schedule": "logsnr"},
         classical_schedules={"ddim": "logsnr"})  # fmt: skip
    random = {"network": "random", "source": "none"}
    if name == "DDPM":
        edit(clone, perceptual=random | {"weights": layout.NONE})
    elif name == "SD, v-prediction":
        edit(clone, fid=random | {"features": layout.NONE})
    early = name == "Flux"
    edit(clone, learners={"free_bands": {"late": not early}})
    run_all(clone, *(stage.cmd for stage in in_order(clone)))
    for kind in ("fits", "solvers"):
        c_0 = Tableau.load(clone / f"runs/mine/{kind}/free_bands-3/solver.json").c_0
        assert bool((c_0 == 1).all()) is early
    rows = check_results(clone, "mine", 2 if model.get("guidance", 1.0) != 1 else 1)
    assert all(float(row[column]) >= 0 for row in rows for column in ("precision", "recall"))
    assert all(np.isfinite(float(row["kid"])) for row in rows)
    assert all(bool(row["clip_score"]) is prompted for row in rows)


@pytest.mark.parametrize("more", [{}, {"pipeline": {"num_images_per_prompt": 1}}], ids=["own adapter", "for all"])
def test_only_the_stage_of_prompts_needs_text_encoders(more, clone):
    """However many solvers and NFEs there are: the encoders are removed after it."""
    folder = clone / "models/mine"
    pipes.saved(pipes.stable_diffusion_xl(), folder)
    standins.inception(clone / "models/inception.pt", 16)
    (clone / "inputs/prompts/mine.txt").write_text("a cat\nthe sea\na dog on a hill\n")
    model = {"name": "mine", "kind": "diffusers", "weights": "models/mine", "condition": "prompts", "guidance": 2.0}
    edit(clone, **TOY)
    edit(clone, nfe=[3, 4], refined=[], model=model | more, prompts="inputs/prompts/mine.txt",
         fid={"network": "inception", "features": "models/inception.pt", "real": layout.NONE},
         starts={name: {"schedules": ["logsnr"]} for name in ("s4s", "s4s_alt")}, reference={"schedule": "logsnr"},
         classical_schedules={"ddim": "logsnr"})  # fmt: skip
    stages = [stage.cmd for stage in in_order(clone)]
    first = next(i for i, command in enumerate(stages) if "stages.prompts" in command)
    run_all(clone, *stages[: first + 1])
    for part in ("text_encoder", "text_encoder_2", "tokenizer", "tokenizer_2"):
        shutil.rmtree(folder / part)
    run_all(clone, *stages[first + 1 :])
    metrics = sorted(path.parent.name for path in (clone / "runs/mine/evaluations").glob("*/metrics.json"))
    assert metrics == sorted(["teacher-4", *(f"{name}-{nfe}" for name in ("ddim", "s4s", "s4s_alt") for nfe in (3, 4))])


def test_there_is_a_stand_in_for_every_preset():
    assert {*STANDINS, *GENERAL, "digits"} == set(presets.names())
