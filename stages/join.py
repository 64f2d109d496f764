"""Join the refined solvers of all NFEs into one file."""

import click

from s4spipe.pipeline import stage
from s4spipe.pipeline.layout import Cell
from s4spipe.pipeline.schema import Params
from s4spipe.sampling.tableau import Tableau
from s4spipe.sampling.tableau.lists import save_all


@stage.command
@click.argument("name")
def main(params: Params, name: str) -> None:
    places = stage.layout(params)
    paths = [places.learned("solvers", Cell(name, nfe))[0] for nfe in sorted(params.nfe)]
    save_all(places.joined(name), [Tableau.load(path) for path in paths])


if __name__ == "__main__":
    main()
