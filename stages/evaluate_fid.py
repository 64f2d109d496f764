"""FID of a solver's samples, and their distance to the teacher's samples from the same noises."""

import click
import numpy as np

from s4spipe import fid, stage
from s4spipe.files import read_array, write_json
from s4spipe.images import to_uint8
from s4spipe.models import digits
from s4spipe.models.features import DigitFeatures
from s4spipe.params import Params, device


@stage.command
@click.argument("solver")
@click.argument("nfe", type=int)
def main(params: Params, solver: str, nfe: int) -> None:
    on = device(params.run.device)
    net = DigitFeatures.load(params.fid.features, on)
    count = None if params.fid.count == "all" else params.fid.count
    samples = read_array(f"samples/{solver}-{nfe}.npy")[:count]
    teacher = read_array(f"samples/teacher-{params.teacher.nfe}.npy")[:count]
    generated, real = (fid.statistics(fid.features(x, net, on)) for x in (samples, to_uint8(digits.images()[0])))
    difference = (samples.astype(np.float64) - teacher) / 127.5
    result = {
        "fid": fid.frechet_distance(*generated, *fid.load_statistics(params.fid.reference)),
        "fid_real": fid.frechet_distance(*generated, *real),
        "teacher_distance": np.sqrt((difference**2).mean()),
    }
    # Rounded, so that the last digits of another processor do not count as a change.
    write_json(f"evaluations/{solver}-{nfe}.json", {key: round(float(value), 5) for key, value in result.items()})


if __name__ == "__main__":
    main()
