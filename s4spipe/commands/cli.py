"""The command line: what DVC's own commands do not do."""

import sys

import click

from s4spipe.commands.compare import compare
from s4spipe.commands.diff import diff
from s4spipe.commands.estimate import estimate
from s4spipe.commands.export import export
from s4spipe.commands.preset import preset
from s4spipe.commands.sample import sample
from s4spipe.commands.show import show
from s4spipe.runtime.errors import UserError, ensure_streams, explained


class Group(click.Group):
    """Reports a user's mistake, and what the system refuses, in one sentence."""

    def invoke(self, ctx: click.Context) -> object:
        ensure_streams()
        try:
            with explained():
                return super().invoke(ctx)
        except UserError as error:
            click.echo(f"Error: {error}", err=True)
            sys.exit(1)


@click.group(cls=Group, context_settings={"help_option_names": ["-h", "--help"]})
def main() -> None:
    """Learned few-step solvers for diffusion models. Run it in the project's root; `dvc repro` does everything else."""


for command in (preset, estimate, export, show, compare, diff, sample):
    main.add_command(command)


if __name__ == "__main__":
    main()
