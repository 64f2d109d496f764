"""Train the classifier whose features serve FID and the perceptual distance."""

import click

from s4spipe import stage
from s4spipe.features import training
from s4spipe.files import Scratch, fingerprint
from s4spipe.params import Params, device


@stage.command
def main(params: Params) -> None:
    settings = params.train_features.model_dump()
    scratch = Scratch(fingerprint("train_features", settings))
    accuracy = training.train(training.WEIGHTS, settings, device(params.run.device), scratch)
    scratch.clear()
    click.echo(f"accuracy on held-out digits: {accuracy:.1%}")


if __name__ == "__main__":
    main()
