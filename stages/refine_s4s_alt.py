"""S4S-Alt: learn a solver's steps and coefficients, in turn."""

import click

from s4spipe import stage
from s4spipe.distill import learn
from s4spipe.distill.fit import s4s_alt
from s4spipe.params import Params


@stage.command
@click.argument("nfe", type=int)
def main(params: Params, nfe: int) -> None:
    settings = params.s4s_alt
    phases = s4s_alt(settings.alternations, settings.epochs, settings.warmup_epochs, settings.joint)
    learn.solver("s4s_alt", nfe, phases, params)


if __name__ == "__main__":
    main()
