"""A solver as a folder ready for a hub of models: its file, a scheduler's config, and a card that says what it is."""

import json
import os
import shutil
from pathlib import Path
from typing import Any

import click

from s4spipe.commands.terminal import to_yaml
from s4spipe.models.noise import Flow, VPDiscrete
from s4spipe.pipeline import resolve
from s4spipe.pipeline.layout import Cell
from s4spipe.pipeline.schema import Params
from s4spipe.report.run import Run
from s4spipe.report.tables import spent
from s4spipe.runtime.errors import UserError, explained, unknown
from s4spipe.sampling.tableau import Tableau


@click.command()
@click.argument("solver")
@click.argument("nfe", type=int)
@click.argument("folder", type=click.Path(path_type=Path))
def export(solver: str, nfe: int, folder: Path) -> None:
    """Write a solver of this run (s4s_alt 5, for instance) to FOLDER, ready for a hub of models."""
    for path in write(Run.at("."), Cell(solver, nfe), folder):
        click.echo(path)


def write(run: Run, cell: Cell, folder: Path) -> list[Path]:
    """Export a solver of a run; returns the files written: all of them, or none.

    Raises UserError if the folder exists already or cannot be written, or the run does not have that solver.
    """
    if folder.exists():
        raise UserError(f"{folder}: exists already; remove it, or export to another folder")
    cells = resolve.cells(run.params)
    if cell not in cells:
        raise unknown("solver of this run", str(cell), map(str, cells))
    tableau = run.tableau(cell)
    # No pipeline of diffusers has other noise, or draws noise besides its own before the first step.
    has_scheduler = isinstance(tableau.noise, VPDiscrete | Flow) and not tableau.needs(0)
    text = card(run, cell, tableau, has_scheduler)
    temporary = folder.with_name(f".{folder.name}.tmp")
    try:
        with explained(folder):
            shutil.rmtree(temporary, ignore_errors=True)
            temporary.mkdir(parents=True)
            tableau.save(temporary / "solver.json")
            if has_scheduler:
                from s4spipe.scheduler import S4SScheduler  # takes seconds to import

                S4SScheduler.from_tableau(tableau, _config(run.params)).save_pretrained(temporary)
            (temporary / "README.md").write_text(text, encoding="utf-8")
            os.replace(temporary, folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return sorted(folder.iterdir())


def _config(params: Params) -> dict[str, Any] | None:
    """The config of the model's own scheduler, if it has one."""
    if params.model.kind == "diffusers":
        from s4spipe.models.diffusers.folder import scheduler_config

        return scheduler_config(Path(params.model.weights))
    return params.model.scheduler


def card(run: Run, cell: Cell, tableau: Tableau, has_scheduler: bool) -> str:
    """The model card: which model the solver is for, how good it is, how it was made, how to use it."""
    params, own = run.params, run.cells[cell]
    model = tableau.meta.get("model") or {"source": params.model.source or params.model.weights}
    front: dict[str, Any] = {"library_name": "diffusers" if has_scheduler else "s4spipe"}
    front["tags"] = ["diffusion-solver", "s4s"]
    if "commit" in model:
        front = {"base_model": model["source"], **front}
    commit = f", commit {model['commit']}" if "commit" in model else ""
    fingerprint = f" (fingerprint of its files: {model['fingerprint']})" if "fingerprint" in model else ""
    rows = [
        f"| {row.solver} | {spent(row, numbers)} | {numbers['network_calls']} | {numbers['fid']:.3f} "
        f"| {numbers['teacher_distance']:.4f} |"
        for row, numbers in run.cells.items()
        if row.nfe == cell.nfe or row == run.teacher
    ]
    against = "the model's own distribution" if params.reference.source == "model" else "real images"
    network = params.fid.network + (f", {params.fid.mode}" if params.fid.network == "inception" else "")
    keys = ("family", "solver", "schedule", "params", "refined")
    made = to_yaml({key: tableau.meta[key] for key in keys if key in tableau.meta})
    return f"""---
{to_yaml(front)}
---

# {cell.solver}, {cell.nfe} NFE, for {model["source"]}

A solver for the sampling ODE of {model["source"]}{commit}. A sample takes {own["nfe"]} evaluations of the denoiser
({own["network_calls"]} of the network), at time steps that belong to the solver. Use it only with this
model{fingerprint} and with guidance scale {params.model.guidance:g}.

## Usage

```python
{IN_PIPELINE if has_scheduler else _by_hand(params)}
```

## Results

Each row is measured on {own["samples"]:,} samples from the same noises. FID is measured against {against}, with
features of the network {network}. The last column is the root mean square difference from the teacher's samples.

| solver | NFE | network calls | FID | distance to the teacher |
|---|--:|--:|--:|--:|
{chr(10).join(rows)}

The teacher is {run.teachers_name}.

## How it was made

With [s4spipe](https://arxiv.org/abs/2502.17423), a pipeline that learns few-step solvers (S4S):

```yaml
{made}
```
"""


IN_PIPELINE = """import s4spipe

solver = s4spipe.apply(pipe, "path/to/this/folder")  # solver.undo() takes it out again
images = pipe(..., num_inference_steps=solver.nfe).images"""


def _by_hand(params: Params) -> str:
    settings: dict[str, Any] = {"kind": params.model.kind, "weights": "path/to/weights"}
    if params.model.guidance != 1.0:
        settings["guidance"] = params.model.guidance
    condition = "torch.randint(denoiser.num_classes, (16,))" if params.model.condition == "labels" else "None"
    return f"""import torch
from s4spipe import Tableau, models, sample

denoiser = models.load({json.dumps(settings)})
solver = Tableau.load("solver.json")
x_T = denoiser.noise_schedule.sigma_T * torch.randn(16, *denoiser.sample_shape)
condition = {condition}
x_0 = sample(denoiser, solver, x_T, condition)"""
