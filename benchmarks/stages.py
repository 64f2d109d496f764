"""Time and peak memory of whole stages at 1,000 and 10,000 images, beside the network calls that they make.

Run as `python -m benchmarks.stages` on Linux: about 5 minutes on a core. The networks are random stand-ins: a small
U-Net for images of the size of CIFAR-10's, and a network with Inception's interface and 2048 features, which sees
images that are resized for Inception. Each stage is a process of its own; its time includes Python's start and imports.
"""

import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import click
import torch

from benchmarks.common import PAGES, seconds
from s4spipe.features.base import loading
from s4spipe.noise import VE
from s4spipe.pipeline import params as parameters
from s4spipe.pipeline import presets, render, stage
from s4spipe.pipeline.layout import Cell
from s4spipe.pipeline.schema import Params
from s4spipe.runtime.files import write_text
from s4spipe.sampling.batches import draw
from s4spipe.solvers import registry

ROOT = Path(__file__).parent.parent
NFE, BATCH = 2, 250
STAGES = {"sample": ["tables", "ddim", str(NFE)], "reference": [], "evaluate": ["ddim", str(NFE)]}
MODEL = """
import torch
from diffusers import UNet2DModel

class Net(torch.nn.Module):
    img_channels, img_resolution, sigma_min, sigma_max = 3, 32, 0.0, float("inf")

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.unet = UNet2DModel(32, 3, 3, block_out_channels=(8, 16), norm_num_groups=4, layers_per_block=1,
                                down_block_types=("DownBlock2D",) * 2, up_block_types=("UpBlock2D",) * 2)

    def forward(self, x, sigma, class_labels=None):
        scale = 1 / (1 + sigma[:, None, None, None] ** 2)
        return scale * x + 0.1 * self.unet(scale.sqrt() * x, sigma.log()).sample
"""


class Seeing(torch.nn.Module):
    """Inception's interface: `layers` take images that are resized and normalised."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        pool, to = torch.nn.AdaptiveAvgPool2d(8), torch.nn.Linear(192, 2048)
        self.layers = torch.nn.Sequential(pool, torch.nn.Flatten(), to, torch.nn.Tanh())

    def forward(self, x: torch.Tensor, return_features: bool = False) -> torch.Tensor:
        return self.layers((x - 128) / 128)


@click.command()
@click.option("--few", default=1000, show_default=True, help="Images.")
@click.option("--many", default=10_000, show_default=True, help="Images.")
def main(few: int, many: int) -> None:
    found = {}
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        for count in (few, many):
            settings = project(count)
            run("sample", ["tables", "teacher", str(NFE)])  # which only `evaluate` needs
            for name, arguments in STAGES.items():
                found[name, count] = run(name, arguments)
                click.echo(f"{name} {count:,}: {found[name, count][0]:.0f} s", err=True)
        # After the stages: a child's peak memory is at least what this process had when it started the child.
        of_model, of_features = per_image(settings)
        os.chdir(ROOT)
    calls = {"sample": NFE * of_model, "reference": NFE * of_model + of_features, "evaluate": of_features}
    lines = [f"| stage | {few:,} images | {many:,} images | ms per further image | of them, bare network calls | "
             f"peak memory, {few:,} | peak memory, {many:,} |", "|---|--:|--:|--:|--:|--:|--:|"]  # fmt: skip
    for name, each in calls.items():
        (short, before), (long, after) = found[name, few], found[name, many]
        lines.append(f"| {name} | {short:.0f} s | {long:.0f} s | {1e3 * (long - short) / (many - few):.2f} | "
                     f"{1e3 * each:.2f} | {before:.0f} MiB | {after:.0f} MiB |")  # fmt: skip
    click.echo("\n".join(lines))
    write_text(PAGES / "benchmarks/stages.md", "\n".join([*lines, ""]))


def project(count: int) -> Params:
    """Make the folder a project with so many samples. Returns its parameters."""
    Path("standin.py").write_text(MODEL, encoding="utf-8")
    Path("model.bin").write_bytes(b"")
    Path("inputs").mkdir(exist_ok=True)
    Path("inputs/none.txt").touch()
    torch.jit.script(Seeing()).save("inception.pt")
    values = presets.merge(Params().model_dump(exclude_none=True), {
        "nfe": [NFE], "classical": ["ddim"], "learned": [], "refined": [],
        "model": {"name": "standin", "kind": "callable", "weights": "model.bin", "source": "standin:Net",
                  "condition": "none"},
        "run": {"device": "cpu", "batch_size": BATCH}, "teacher": {"nfe": NFE}, "sample": {"count": count},
        "reference": {"nfe": NFE, "count": count},
        "fid": {"network": "inception", "features": "inception.pt", "real": "inputs/none.txt"},
    }) | {"classical_schedules": {"ddim": "edm"}}  # fmt: skip
    write_text("params.yaml", render.params_yaml(values))
    settings = parameters.load()
    for solver in ("ddim", "teacher", "reference"):
        registry.make("ddim", "edm", VE(), NFE).save(stage.layout(settings).table(Cell(solver, NFE)))
    return settings


@torch.inference_mode()
def per_image(settings: Params) -> tuple[float, float]:
    """Seconds of a call of the model and of the features network, of one image in a batch."""
    sys.path.insert(0, "")
    denoiser = stage.load_model(settings)
    net = loading.load("inception", "inception.pt", denoiser.device)
    x_T, _ = draw(denoiser, "sample", 0, range(BATCH))
    images, sigma = 255 * torch.rand(BATCH, 3, 299, 299), torch.ones(BATCH)
    found = []
    for call in (lambda: denoiser.net(x_T, sigma), lambda: net(images)):
        call()
        found.append(min(seconds(call, denoiser.device) for _ in range(3)) / BATCH)
    return found[0], found[1]


def run(module: str, arguments: list[str]) -> tuple[float, float]:
    """Seconds and peak memory, in MiB, of a stage, in a process of its own."""
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    started = time.perf_counter()
    process = subprocess.Popen([sys.executable, "-m", f"stages.{module}", *arguments], env=environment)
    _, status, usage = os.wait4(process.pid, 0)
    if status:
        sys.exit(f"stages.{module} has failed")
    return time.perf_counter() - started, usage.ru_maxrss / 2**10


if __name__ == "__main__":
    main()
