"""Train a confirmation model, and the two networks that look at its samples."""

import click

from benchmarks.rivals import params, training
from benchmarks.rivals.problems import confirmation
from s4spipe.runtime.scratch import Scratch, fingerprint
from s4spipe.training.unet import UNetTraining


@click.command()
@click.argument("name", type=click.Choice(tuple(confirmation.MODELS)))
def main(name: str) -> None:
    settings = params.load()["confirmation_training"]
    common = {key: value for key, value in settings.items() if key != "steps"}
    how = {part: UNetTraining(steps=steps, **common) for part, steps in settings["steps"].items()}
    scratch = Scratch(fingerprint("confirmation", name, settings))
    for which in confirmation.NETWORKS:
        training.look(name, which, how["looks"], scratch)
    training.model(name, how[name], how["autoencoder"], scratch)
    scratch.clear()


if __name__ == "__main__":
    main()
