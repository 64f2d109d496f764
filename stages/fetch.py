"""Download one of the files that `fetch` in params.yaml names, and convert it if necessary."""

import click

from s4spipe.pipeline import fetch, stage
from s4spipe.pipeline.schema import Params


@stage.command
@click.argument("path")
def main(params: Params, path: str) -> None:
    plan = fetch.plan(path, params)
    click.echo(plan.sentence)
    plan.run()


if __name__ == "__main__":
    main()
