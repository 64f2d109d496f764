"""Write all tableaux that come from formulas: classical solvers, the teacher, the reference, the learners' starts."""

from collections.abc import Sequence
from pathlib import Path

from s4spipe.models.base.loading import noise_schedule
from s4spipe.pipeline import stage, tables
from s4spipe.pipeline.schema import Params
from s4spipe.runtime.errors import UserError
from s4spipe.runtime.files import read_json, write_json
from s4spipe.sampling.tableau import Tableau, adaptive
from s4spipe.sampling.tableau.adaptive import Adaptive
from s4spipe.sampling.tableau.lists import load_all, save_all
from s4spipe.solvers import registry, statistics


@stage.command
def main(params: Params) -> None:
    places, noise = stage.layout(params), noise_schedule(stage.model_settings(params))
    named = read_json(places.schedules / "inputs.json")
    named |= {name: read_json(places.schedules / f"{name}.json") for name in params.searched}
    needed = any(map(registry.needs_statistics, params.classical))
    known = statistics.read(places.statistics) if needed else None
    made = {places.table(cell): [solver] for cell, solver in tables.tables(params, noise, named, known)}
    starts = {places.starts(cell): candidates for cell, candidates in tables.start_tables(params, noise, named)}
    for path, solver in made.items():
        if not there(path, solver):
            solver[0].save(path)
    for path, candidates in starts.items():
        if not there(path, candidates):
            save_all(path, candidates)
    if not starts:
        write_json(places.run / "starts" / "none.json", [])  # DVC needs the folder
    for measured in places.measured:
        measured.mkdir(exist_ok=True)  # DVC needs what the report reads, without learned solvers too
    for folder in ("tables", "starts"):  # remove those of former solvers and NFEs
        for path in (places.run / folder).glob("*.json"):
            if path not in {*made, *starts} and (starts or path.name != "none.json"):
                path.unlink()
    arrays = "".join(path.read_text(encoding="utf-8") for path in made if needed)
    for path in (places.run / "tables").glob("*.safetensors"):  # of a solver's weights, beside its own file
        if path.name not in arrays:
            path.unlink()


def there(path: Path, solvers: Sequence[Tableau | Adaptive]) -> bool:
    """Whether the file already holds these solvers, up to rounding. The last digits on another processor must not
    count as a change, which would re-run the teacher's pairs and everything after them."""
    try:
        known = load_all(path) if path.parent.name == "starts" else [adaptive.load(path)]
    except UserError:
        return False
    return len(known) == len(solvers) and all(a.agrees(b) for a, b in zip(known, solvers, strict=True))


if __name__ == "__main__":
    main()
