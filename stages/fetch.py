"""Download one of the files that params.yaml names in `fetch`, and convert it if need be."""

import click

from s4spipe import fetch, stage
from s4spipe.params import Params


@stage.command
@click.argument("path")
def main(params: Params, path: str) -> None:
    plan = fetch.plan(path, params)
    click.echo(plan.sentence)
    plan.run()


if __name__ == "__main__":
    main()
