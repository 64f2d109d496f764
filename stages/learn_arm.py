"""Learn a further solver, as a block of `arms` in params.yaml describes it."""

import click

from s4spipe import stage
from s4spipe.distill import learn
from s4spipe.params import Params


@stage.divided
@click.argument("arm")
@click.argument("nfe", type=int)
def main(params: Params, arm: str, nfe: int) -> None:
    learn.solver(arm, nfe, params.arm(arm), params)


if __name__ == "__main__":
    main()
