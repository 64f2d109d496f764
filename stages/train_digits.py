"""Train the embedded diffusion model of handwritten digits."""

from s4spipe.pipeline import layout, stage
from s4spipe.pipeline.schema import Params
from s4spipe.runtime.scratch import Scratch, fingerprint
from s4spipe.training import denoiser


@stage.command
def main(params: Params) -> None:
    settings = params.train_digits.model_dump()
    scratch = Scratch(fingerprint("train_digits", settings))
    training = denoiser.DigitsTraining(**settings)
    denoiser.train(layout.DIGITS_WEIGHTS, training, stage.device(params), scratch)
    scratch.clear()


if __name__ == "__main__":
    main()
