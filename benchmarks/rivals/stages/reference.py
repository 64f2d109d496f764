"""The distribution to compare with: the teacher's, from other noises, or the data's where it is known."""

import click
import torch

from benchmarks.rivals import params, sampling
from benchmarks.rivals.problems.problem import NAMES, Problem
from s4spipe.features.base import frechet
from s4spipe.runtime.files import write_tensors
from s4spipe.sampling.batches import Noises


@click.command()
@click.argument("name", type=click.Choice(NAMES))
def main(name: str) -> None:
    settings, problem = params.load(), Problem(name, torch.device("cpu"))
    count = settings["reference"]
    if problem.data:
        drawn = problem.data(count)
    else:
        table = sampling.teacher(problem, settings["teacher"][name])
        drawn = sampling.samples(problem, table, Noises("reference", 0, count)).x_0.clone()
    mean, covariance = frechet.statistics(problem.judge(drawn).double())
    write_tensors(f"references/{name}.safetensors", {"mean": mean, "covariance": covariance})


if __name__ == "__main__":
    main()
