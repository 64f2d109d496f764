"""Train a classifier of digits for its features: those that judge by FID, or those that the fits may see."""

import click

from s4spipe import stage
from s4spipe.features import training
from s4spipe.files import Scratch, fingerprint
from s4spipe.params import Params, device


@stage.command
@click.argument("name", type=click.Choice(list(training.SHAPES)))
def main(params: Params, name: str) -> None:
    settings = getattr(params, f"train_{name}").model_dump()
    scratch = Scratch(fingerprint("train_features", name, settings))
    accuracy = training.train(
        training.WEIGHTS[name], settings, device(params.run.device), scratch, training.SHAPES[name]
    )
    scratch.clear()
    click.echo(f"accuracy on held-out digits: {accuracy:.1%}")


if __name__ == "__main__":
    main()
