"""The command line, where DVC's own verbs are not enough."""

import shutil
import sys
from pathlib import Path

import click

from s4spipe import checks, inspect, params, presets, sheets
from s4spipe import export as exporting
from s4spipe.errors import UserError
from s4spipe.tableau import Tableau


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


@main.command()
@click.argument("solver", type=click.Path(path_type=Path))
def show(solver: Path) -> None:
    """Show a solver's file: its times, its table, where it comes from."""
    click.echo(inspect.show(Tableau.load(solver), shutil.get_terminal_size().columns))


@main.command()
@click.argument("one", type=click.Path(path_type=Path))
@click.argument("other", type=click.Path(path_type=Path))
def compare(one: Path, other: Path) -> None:
    """Compare two solvers' files."""
    click.echo(inspect.compare(Tableau.load(one), Tableau.load(other), shutil.get_terminal_size().columns))


@main.command()
@click.argument("one")
@click.argument("other")
@click.argument("page", type=click.Path(path_type=Path), default="diff.html")
def diff(one: str, other: str, page: Path) -> None:
    """Compare two experiments (or branches, tags, commits, the `workspace`) on one PAGE of HTML."""
    from s4spipe.report import revisions  # seconds to import

    revisions.compare(one, other, page)
    click.echo(page)


@main.command()
@click.argument("solver", type=click.Path(path_type=Path))
@click.argument("sheet", type=click.Path(path_type=Path))
@click.option("--count", default=10, show_default=True, type=click.IntRange(1, 100), help="Images, one noise each.")
@click.option("--seed", default=0, show_default=True, type=click.IntRange(0))
def sample(solver: Path, sheet: Path, count: int, seed: int) -> None:
    """Sample with a solver's file, by the model of params.yaml, without DVC: a sheet of images (PNG)."""
    if sheet.suffix != ".png":
        raise UserError(f"{sheet}: the sheet is a PNG; give it a name that ends in .png")
    settings = params.load()
    seconds = sheets.sample(settings, Tableau.load(solver), count, seed, sheet)
    click.echo(f"{sheet}: {count} images in {seconds:.1f} s")


@main.command()
def check() -> None:
    """Check params.yaml before a long run: files, network evaluations, and about how long and how large."""
    click.echo(checks.report(params.load()))


if __name__ == "__main__":
    main()
