"""Refine the solver `free`, so that its samples are distributed as the teacher's are."""

import click

from s4spipe import stage
from s4spipe.distill.refine import refine
from s4spipe.params import Params


@stage.divided
@click.argument("nfe", type=int)
def main(params: Params, nfe: int) -> None:
    refine(nfe, params)


if __name__ == "__main__":
    main()
