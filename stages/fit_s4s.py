"""S4S: learn a solver's coefficients on fixed steps."""

import click

from s4spipe import stage
from s4spipe.distill import learn
from s4spipe.params import Params


@stage.divided
@click.argument("nfe", type=int)
def main(params: Params, nfe: int) -> None:
    learn.solver("s4s", nfe, params.s4s, params)


if __name__ == "__main__":
    main()
