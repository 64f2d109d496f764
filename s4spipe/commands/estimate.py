"""Checking params.yaml before a long run, and estimating its cost."""

import time
from pathlib import Path

import click
import torch

from s4spipe.commands import memory
from s4spipe.models.base.denoiser import Denoiser
from s4spipe.pipeline import cost, stage
from s4spipe.pipeline import params as parameters
from s4spipe.pipeline.schema import Params
from s4spipe.sampling.batches import draw, synchronize
from s4spipe.sampling.tableau.form import RK45


@click.command()
def estimate() -> None:
    """Check params.yaml before a long run: missing files, network evaluations, rough time and memory."""
    click.echo(report(parameters.load()))


def report(params: Params) -> str:
    """Which files are missing, the number of network evaluations, and estimates of time, memory and disk space.

    Cached results are not subtracted. Raises UserError for a model that cannot be loaded.
    """
    lines = ["params.yaml is valid"]
    fid = params.fid
    files = [("model.weights", params.model.weights), ("perceptual.weights", params.perceptual.weights)]
    files += [("fid.features", fid.features), ("fid.real", fid.real), ("prompts", params.prompts)]
    for key, path in files:
        if not Path(path).exists():
            lines.append(
                f"{key}: {path} is not there" + (", will be fetched" if path in params.fetch else ": put it there")
            )
    evaluations = cost.network_evaluations(params)
    lines.append("network evaluations, if nothing is cached:")
    lines += [f"  {part:24} {count:>14,}" for part, count in evaluations.items()]
    total = sum(evaluations.values())
    lines.append(f"  {'total':24} {total:>14,}")
    for role in ("teacher", "reference"):
        block = getattr(params, role)
        if block.solver == RK45:
            lines.append(f"  (rk45, the {role}, takes what a sample needs, which only running it can tell: counted are "
                         f"the {block.nfe} that {role}.nfe allows)")  # fmt: skip
    embeddings = stage.model_settings(params).embeddings
    if all(Path(path).exists() for path in (params.model.weights, *([embeddings] if embeddings else []))):
        denoiser = stage.load_model(params)
        seconds, image = measure(params, denoiser)
        hours, minutes = divmod(round(total * seconds / 60), 60)
        where = f"on {stage.device(params)}, at {seconds:.2g} s an evaluation"
        lines.append(f"time: about {hours} h {minutes:02} min {where}, features and decoding not counted")
        sampling, learning = memory.of_sampling(params, denoiser), memory.of_learning(params, denoiser)
        lines.append(f"memory: about {sampling / 1e9:.2g} GB at the peak of sampling (see run.batch_size) "
                     f"and {learning / 1e9:.2g} GB of learning (run.micro_batch_size), without features")  # fmt: skip
        lines.append(f"disk: {cost.sample_bytes(params, image) / 1e9:.2g} GB of samples, and as much in DVC's cache")
    return "\n".join(lines)


@torch.inference_mode()
def measure(params: Params, denoiser: Denoiser, rounds: int = 3) -> tuple[float, list[int]]:
    """Seconds per network evaluation and sample, with the stages' batch size, and the shape of an image."""
    count = min(params.run.batch_size, params.sample.count)
    x_T, condition = draw(denoiser, "sample", 0, range(count))
    t = torch.tensor(denoiser.noise_schedule.T, device=denoiser.device)
    denoiser(x_T, t, condition)
    synchronize(denoiser.device)
    started = time.perf_counter()
    for _ in range(rounds):
        denoiser(x_T, t, condition)
    synchronize(denoiser.device)
    seconds = (time.perf_counter() - started) / rounds / count / denoiser.network_calls
    return seconds, list(denoiser.decode(x_T[:1]).shape[1:])
