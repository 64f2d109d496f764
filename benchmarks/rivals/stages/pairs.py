"""The teacher's samples, to learn from, to validate by and to compare with."""

import click
import torch

from benchmarks.rivals import params, sampling
from benchmarks.rivals.problems.problem import NAMES, Problem
from s4spipe.sampling.batches import Noises


@click.command()
@click.argument("name", type=click.Choice(NAMES))
@click.argument("seed", type=int)
def main(name: str, seed: int) -> None:
    settings, problem = params.load(), Problem(name, torch.device("cpu"))
    table = sampling.teacher(problem, settings["teacher"][name])
    counts = {"train": settings["train"], "validation": settings["validation"], "sample": settings["samples"][name]}
    for stream, count in counts.items():
        pairs = sampling.samples(problem, table, Noises(stream, seed, count))
        pairs.save(f"pairs/{name}-{seed}/{stream}.safetensors")


if __name__ == "__main__":
    main()
