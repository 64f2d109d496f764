"""Write the embedded default's real images, for FID against them."""

from s4spipe import stage
from s4spipe.files import write_array
from s4spipe.images import to_uint8
from s4spipe.models import digits
from s4spipe.params import Params


@stage.command
def main(params: Params) -> None:
    write_array(digits.IMAGES, to_uint8(digits.images()[0]))


if __name__ == "__main__":
    main()
