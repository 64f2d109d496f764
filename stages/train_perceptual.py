"""Train the classifier whose features the fits may see: another than the one that judges them by FID."""

import click

from s4spipe import stage
from s4spipe.features import training
from s4spipe.files import Scratch, fingerprint
from s4spipe.params import Params, device


@stage.command
def main(params: Params) -> None:
    settings = params.train_perceptual.model_dump()
    scratch = Scratch(fingerprint("train_perceptual", settings))
    accuracy = training.train(training.PERCEPTUAL, settings, device(params.run.device), scratch, training.OTHER)
    scratch.clear()
    click.echo(f"accuracy on held-out digits: {accuracy:.1%}")


if __name__ == "__main__":
    main()
