"""Write the real images of handwritten digits, for metrics of the embedded model."""

from s4spipe.pipeline import layout, stage
from s4spipe.pipeline.schema import Params
from s4spipe.runtime.files import write_array
from s4spipe.sampling.images import to_uint8
from s4spipe.training import digits


@stage.command
def main(params: Params) -> None:
    write_array(layout.DIGITS_IMAGES, to_uint8(digits.images()[0]))


if __name__ == "__main__":
    main()
