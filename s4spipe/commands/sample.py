"""A sheet of one solver's samples, without the pipeline."""

from pathlib import Path

import click
import torch

from s4spipe.commands import terminal
from s4spipe.pipeline import params as parameters
from s4spipe.pipeline import stage
from s4spipe.pipeline.schema import Params
from s4spipe.runtime.errors import UserError
from s4spipe.sampling.batches import Noises, generate
from s4spipe.sampling.images import to_uint8
from s4spipe.sampling.tableau import Tableau


@click.command()
@click.argument("solver", type=click.Path(path_type=Path))
@click.argument("sheet", type=click.Path(path_type=Path))
@click.option("--count", default=10, show_default=True, type=click.IntRange(1, 100), help="Number of images.")
@click.option("--seed", default=0, show_default=True, type=click.IntRange(0))
@terminal.nfe_option
def sample(solver: Path, sheet: Path, count: int, seed: int, nfe: int | None) -> None:
    """Sample with a solver's file, without DVC, and write a PNG of images from the model in params.yaml."""
    if sheet.suffix != ".png":
        raise UserError(f"{sheet}: the sheet is a PNG; give it a name that ends in .png")
    seconds = write(parameters.load(), Tableau.load(solver, nfe), Noises("sample", seed, count), sheet)
    click.echo(f"{sheet}: {count} images in {seconds:.1f} s")


def write(params: Params, tableau: Tableau, noises: Noises, sheet: Path) -> float:
    """Write a sheet of the samples from `noises`. Returns the seconds that sampling took."""
    from s4spipe.report import figures  # takes seconds to import

    denoiser = stage.load_model(params)

    def images(x_0: torch.Tensor) -> torch.Tensor:
        return torch.from_numpy(to_uint8(denoiser.decode(x_0)))

    shards = list(generate(denoiser, tableau, noises, params.run.batch_size, finish=images))
    row = torch.cat([shard["x_0"] for shard in shards]).numpy()
    figures.save(figures.sample_sheet([(tableau.name, row)], f"{tableau.nfe} NFE"), sheet)
    return sum(shard["seconds"] for shard in shards)
