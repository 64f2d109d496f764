"""A finished run that nothing was computed for: its solvers are real, its numbers and pictures made up."""

import numpy as np

from s4spipe.evaluation import thumbnails
from s4spipe.learning import families
from s4spipe.noise import VE
from s4spipe.pipeline import render, resolve, tables
from s4spipe.pipeline.schema import Params
from s4spipe.report.run import Run
from s4spipe.runtime.files import write_json
from s4spipe.sampling.tableau import adaptive

SHAPE = (1, 8, 8)  # of an image
SAMPLES = 12_345


def make(root, noise=None, **blocks):
    """The run of the default parameters, with `blocks` of them changed, in the folder `root`; its params.yaml too."""
    values = Params().model_dump(exclude_none=True)
    for name, value in blocks.items():
        values[name] = values[name] | value if isinstance(value, dict) else value
    (root / "params.yaml").write_text(render.params_yaml(values), encoding="utf-8")
    run, noise = Run.at(root), noise or VE()
    for cell, table in tables.tables(run.params, noise, {}):
        table.save(run.places.table(cell))
    for cell, (start, *_) in tables.start_tables(run.params, noise, {}):
        family = resolve.learner(run.params, cell.solver).family
        student = families.make(family, start, order=3)
        solver, history = run.places.learned("solvers", cell)
        meta = {"family": family, **start.meta, "params": {"order": 3}, **student.metadata()}
        student(cell.solver, meta).save(solver)
        losses = [1.0, 0.5, 0.25, 0.3]
        rows = [{"epoch": i, "train": loss if i else None, "validation": loss} for i, loss in enumerate(losses)]
        write_json(history, rows)
    for index, cell in enumerate(resolve.cells(run.params)):
        _evaluate(run, cell, index)
    return run


def _evaluate(run, cell, index):
    """Numbers and pictures of a cell; the teacher's FID is 0.1, the others' fall from solver to solver."""
    rng = np.random.default_rng(index)
    numbers = {"fid": 2 / index if index else 0.1, "fid_real": 3.0, "teacher_distance": 0.5, "nfe": cell.nfe}
    schedule = adaptive.load(run.places.table(cell)).meta if cell == run.teacher else run.tableau(cell).meta
    numbers |= {"depth": cell.nfe, "network_calls": cell.nfe, "schedule": schedule["schedule"]}
    if not run.has_tableau(cell):
        numbers |= {"nfe": 77, "evaluations": {"mean": 55.5, "most": 77}}
    write_json(run.places.evaluation(cell, "metrics.json"), numbers | {"samples": SAMPLES, "thumbnails": 20})
    paths = rng.standard_normal((4, cell.nfe + 1, 2)).round(4).tolist()
    write_json(run.places.evaluation(cell, "trajectories.json"), paths)
    images = rng.integers(0, 256, (20, *SHAPE), dtype=np.uint8)
    thumbnails.write(run.places.evaluation(cell, "samples.png"), images)
