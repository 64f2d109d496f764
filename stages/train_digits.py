"""Train the embedded diffusion model of handwritten digits."""

from s4spipe import stage
from s4spipe.files import Scratch, fingerprint
from s4spipe.models import digits
from s4spipe.params import Params, device


@stage.command
def main(params: Params) -> None:
    settings = params.train_digits.model_dump()
    scratch = Scratch(fingerprint("train_digits", settings))
    digits.train(digits.WEIGHTS, settings, device(params.run.device), scratch)
    scratch.clear()


if __name__ == "__main__":
    main()
