"""Check the user's schedules and copy them into one file, so that all schedules of a run are in one folder."""

from s4spipe.pipeline import layout, stage
from s4spipe.pipeline.schema import Params
from s4spipe.runtime.files import read_json, write_json
from s4spipe.solvers import timesteps


@stage.command
def main(params: Params) -> None:
    given = {name: read_json(path) for name, path in layout.input_schedules().items()}
    for name, content in given.items():
        timesteps.check_file(content, str(layout.input_schedules()[name]))
    write_json(stage.layout(params).schedules / "inputs.json", given)


if __name__ == "__main__":
    main()
