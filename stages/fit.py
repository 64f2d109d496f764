"""Learn the solver `free` from the teacher's pairs."""

import click

from s4spipe import stage
from s4spipe.distill import free
from s4spipe.params import Params


@stage.divided
@click.argument("nfe", type=int)
def main(params: Params, nfe: int) -> None:
    free.fit(nfe, params)


if __name__ == "__main__":
    main()
