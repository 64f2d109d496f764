"""The command line, where DVC's own verbs are not enough."""

import sys
from pathlib import Path

import click

from s4spipe import export as exporting
from s4spipe import params, presets
from s4spipe.errors import UserError


class Group(click.Group):
    """Tells a user's mistake in a sentence."""

    def invoke(self, context: click.Context) -> object:
        try:
            return super().invoke(context)
        except UserError as error:
            click.echo(f"Error: {error}", err=True)
            sys.exit(1)


@click.group(cls=Group, context_settings={"help_option_names": ["-h", "--help"]})
def main() -> None:
    """Learned few-step solvers of diffusion models. Run from the project's root; everything else is `dvc repro`."""


@main.command()
@click.argument("name", required=False)
@click.option("--dry-run", is_flag=True, help="Only say what it is, what it downloads and what it costs.")
def preset(name: str | None, dry_run: bool) -> None:
    """Switch params.yaml to a published model's; without NAME, list them."""
    if name is None:
        for known in presets.names():
            click.echo(f"{known:14} {presets.read(known)[1].get('title', 'the embedded model')}")
        return
    click.echo(presets.describe(name))
    if dry_run:
        click.echo("params.yaml is as it was")
        return
    kept = presets.switch(name)
    click.echo(f"params.yaml is now presets/{name}.yaml" + (f"; what it was is in {kept}" if kept else ""))
    click.echo("next: dvc repro")


@main.command()
@click.argument("solver")
@click.argument("nfe", type=int)
@click.argument("folder", type=click.Path(path_type=Path))
def export(solver: str, nfe: int, folder: Path) -> None:
    """Write a solver of this run (s4s_alt 5, for instance) to FOLDER, ready for a hub of models."""
    for path in exporting.write(params.load(), solver, nfe, folder):
        click.echo(path)


if __name__ == "__main__":
    main()
