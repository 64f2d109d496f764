"""S4S-Alt: learn a solver's steps and coefficients, in turn."""

import click

from s4spipe import stage
from s4spipe.distill import learn
from s4spipe.params import Params


@stage.divided
@click.argument("nfe", type=int)
def main(params: Params, nfe: int) -> None:
    learn.solver("s4s_alt", nfe, params.arm("s4s_alt"), params)


if __name__ == "__main__":
    main()
