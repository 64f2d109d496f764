"""A look at params.yaml before a long run."""

import time
from pathlib import Path

import torch

from s4spipe import cost, models
from s4spipe.pairs import draw, synchronize
from s4spipe.params import NO_PROMPTS, Params, device


def report(params: Params) -> str:
    """Which files are missing, how many network evaluations there are, and an estimate of time and disk.

    What is cached already is not subtracted. Raises UserError for a model that cannot be loaded.
    """
    lines = ["params.yaml is right"]
    fid = params.fid
    files = [("model.weights", params.model.weights), ("perceptual.weights", params.perceptual.weights)]
    files += [("fid.features", fid.features), ("fid.real", fid.real), ("prompts", params.prompts)]
    for key, path in files:
        if not Path(path).exists():
            lines.append(
                f"{key}: {path} is not there" + (", will be fetched" if path in params.fetch else ": put it there")
            )
    evaluations = cost.network_evaluations(params)
    total = sum(evaluations.values())
    lines.append("network evaluations, if nothing is cached:")
    lines += [f"  {part:24} {count:>14,}" for part, count in evaluations.items()]
    lines.append(f"  {'together':24} {total:>14,}")
    needs = [params.model.weights, *([models.EMBEDDINGS] if params.prompts != NO_PROMPTS else [])]
    if all(Path(path).exists() for path in needs):
        seconds, image = measure(params)
        hours, minutes = divmod(round(total * seconds / 60), 60)
        where = f"on {device(params.run.device)}, at {seconds:.2g} s an evaluation"
        lines.append(f"time: about {hours} h {minutes:02} min {where}, features and decoding not counted")
        lines.append(f"disk: {cost.sample_bytes(params, image) / 1e9:.2g} GB of samples, and as much in DVC's cache")
    return "\n".join(lines)


@torch.inference_mode()
def measure(params: Params, rounds: int = 3) -> tuple[float, list[int]]:
    """Seconds per network evaluation and sample, in a batch as large as the stages', and the shape of an image."""
    on = device(params.run.device)
    denoiser = models.load(params.model.model_dump(), on)
    count = min(params.run.batch_size, params.sample.count)
    x_T, condition = draw(denoiser, "sample", 0, range(count), params.model.condition != "none")
    x_T, condition = x_T.to(on), None if condition is None else condition.to(on)
    t = torch.tensor(denoiser.noise_schedule.T, device=on)
    denoiser(x_T, t, condition)
    synchronize(on)
    started = time.perf_counter()
    for _ in range(rounds):
        denoiser(x_T, t, condition)
    synchronize(on)
    seconds = (time.perf_counter() - started) / rounds / count / denoiser.network_calls
    return seconds, list(denoiser.decode(x_T[:1]).shape[1:])
