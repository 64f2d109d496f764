"""Switching params.yaml to a published model."""

from typing import Any

import click

from s4spipe.pipeline import presets, render


@click.command()
@click.argument("name", required=False)
@click.option("--dry-run", is_flag=True, help="Only say what it is, what it downloads and what it costs.")
def preset(name: str | None, dry_run: bool) -> None:
    """Switch params.yaml to a published model; without NAME, list the presets. What you changed yourself is kept."""
    if name is None:
        for known in presets.names():
            click.echo(f"{known:14} {presets.read(known)[1]['title']}")
        return
    click.echo(presets.describe(name))
    if dry_run:
        click.echo("params.yaml was not changed")
        return
    done = presets.switch(name)
    click.echo(f"params.yaml is now that of the preset {name}")
    for key, value in done.kept.items():
        click.echo(f"kept your change: {_told(key, value)}")
    for key, value in done.left_out.items():
        click.echo(f"did not keep your change, as it belongs to the model: {_told(key, value)}")
    if done.unread:
        click.echo(f"kept none of your changes, as the old file could not be read: {done.unread}")
    if done.backup:
        click.echo(f"the old params.yaml is in {done.backup}")
    click.echo("next: dvc repro")


def _told(key: str, value: Any) -> str:
    return f"{key} removed" if value is None else f"{key}: {render.flow(value)}"
