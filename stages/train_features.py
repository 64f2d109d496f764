"""Train a classifier of digits for its features, either those for FID or those that learning may use."""

import click

from s4spipe.pipeline import layout, stage
from s4spipe.pipeline.schema import Params
from s4spipe.runtime.scratch import Scratch, fingerprint
from s4spipe.training import features


@stage.command
@click.argument("name", type=click.Choice(list(features.SHAPES)))
def main(params: Params, name: str) -> None:
    settings = getattr(params, f"train_{name}").model_dump()
    scratch = Scratch(fingerprint("train_features", name, settings))
    training, device = features.FeaturesTraining(**settings), stage.device(params)
    accuracy = features.train(layout.FEATURES_WEIGHTS[name], training, device, scratch, features.SHAPES[name])
    scratch.clear()
    click.echo(f"accuracy on held-out digits: {accuracy:.1%}")


if __name__ == "__main__":
    main()
