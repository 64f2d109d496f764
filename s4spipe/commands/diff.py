"""Two revisions on one page."""

from pathlib import Path

import click


@click.command()
@click.argument("one")
@click.argument("other")
@click.argument("page", type=click.Path(path_type=Path), default="diff.html")
def diff(one: str, other: str, page: Path) -> None:
    """Compare the results of two experiments, branches, tags or commits (or of the `workspace`) on one HTML PAGE."""
    from s4spipe.report import revisions  # takes seconds to import

    revisions.compare(one, other, page)
    click.echo(page)
