"""Take the solver of one NFE out of the fit for all, so that it can be refined as any other."""

import click

from s4spipe.pipeline import stage
from s4spipe.pipeline.layout import Cell
from s4spipe.pipeline.schema import Params
from s4spipe.runtime.files import read_json, write_json
from s4spipe.sampling.tableau import Tableau


@stage.command
@click.argument("name")
@click.argument("nfe", type=int)
def main(params: Params, name: str, nfe: int) -> None:
    places = stage.layout(params)
    (solvers, history), (path, history_path) = places.span(name), places.learned("fits", Cell(name, nfe))
    write_json(history_path, read_json(history))
    Tableau.load(solvers, nfe).save(path)


if __name__ == "__main__":
    main()
