"""A solver as a folder ready for a hub of models: its file, a scheduler's config, and a card that says what it is."""

import os
import shutil
from pathlib import Path

import yaml

from s4spipe.errors import UserError
from s4spipe.files import read_json, write_text
from s4spipe.noise import Flow, VPDiscrete
from s4spipe.params import Params
from s4spipe.tableau import Tableau

METRICS = Path("results/metrics.json")


def write(params: Params, solver: str, nfe: int, folder: Path) -> list[Path]:
    """Export a solver of the last run; returns the files written.

    Raises UserError if the folder is there already, or the run has not that solver.
    """
    if folder.exists():
        raise UserError(f"{folder}: is there already; remove it, or export elsewhere")
    tableau, metrics = Tableau.load(params.solver_path(solver, nfe)), read_json(METRICS)
    if f"nfe{nfe}" not in metrics.get(solver, {}):
        raise UserError(f"{METRICS}: has no {solver} of {nfe} evaluations; run `dvc repro`")
    temporary = folder.with_name(f".{folder.name}.tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    tableau.save(temporary / "solver.json")
    in_pipelines = isinstance(tableau.noise, VPDiscrete | Flow)
    if in_pipelines:
        from s4spipe.scheduler import S4SScheduler  # seconds to import

        S4SScheduler.from_tableau(tableau, _config(params)).save_pretrained(temporary)
    write_text(temporary / "README.md", card(params, tableau, metrics, solver, nfe, in_pipelines))
    os.replace(temporary, folder)
    return sorted(folder.iterdir())


def _config(params: Params) -> dict | None:
    if params.model.kind == "diffusers":
        from s4spipe.models.diffusers import scheduler_config

        return scheduler_config(Path(params.model.weights))
    return params.model.scheduler or None


def card(params: Params, tableau: Tableau, metrics: dict, solver: str, nfe: int, in_pipelines: bool) -> str:
    """The model card: for which model, how good, from which teacher and parameters, how to use it."""
    model = tableau.meta.get("model") or {"source": params.model.source or params.model.weights}
    commit = f", commit {model['commit']}" if "commit" in model else ""
    teacher, own = params.teacher, metrics[solver][f"nfe{nfe}"]
    front = {"tags": ["diffusion-solver", "s4s"], "library_name": "diffusers" if in_pipelines else "s4spipe"}
    if "commit" in model:
        front["base_model"] = model["source"]
    rows = [
        f"| {name} | {cell['nfe']} | {cell['network_calls']} | {cell['fid']:.3f} | {cell['teacher_distance']:.4f} |"
        for name, cells in metrics.items()
        for key, cell in cells.items()
        if key == f"nfe{nfe}" or name == "teacher"
    ]
    against = "the model's own distribution" if params.reference.source == "model" else "real images"
    fid = f"{params.fid.network}" + (f", mode {params.fid.mode}" if params.fid.network == "inception" else "")
    count = params.sample.count if params.fid.count == "all" else params.fid.count
    return f"""---
{yaml.safe_dump(front, sort_keys=True).strip()}
---

# {tableau.name}, {nfe} evaluations, for {model["source"]}

A solver of the sampling ODE of {model["source"]}{commit}: {own["nfe"]} evaluations of the denoiser a sample
({own["network_calls"]} of the network), on its own time steps. It holds for this model
{f"(fingerprint of its files: {model['fingerprint']})" if "fingerprint" in model else ""} and for
guidance {params.model.guidance:g} alone.

## How to use it

```python
{IN_PIPELINE if in_pipelines else BY_HAND}
```

## How good it is

{count} samples from the same noises for every row; FID by the features network {fid}, against {against}.

| solver | NFE | network calls | FID | distance to the teacher |
|---|--:|--:|--:|--:|
{chr(10).join(rows)}

The teacher is {teacher.solver} on {teacher.steps} steps with {teacher.nfe} evaluations.

## How it was made

By [s4spipe](https://arxiv.org/abs/2502.17423), S4S as a pipeline, with

```yaml
{yaml.safe_dump({"family": tableau.meta.get("family", "classical"), **_settings(tableau)}, sort_keys=False).strip()}
```
"""


IN_PIPELINE = """from s4spipe.scheduler import S4SScheduler

pipe.scheduler = S4SScheduler.from_tableau("this folder", pipe.scheduler.config)
images = pipe(..., num_inference_steps=pipe.scheduler.nfe).images"""
BY_HAND = """from s4spipe import Tableau, models, sample

denoiser = models.load({"kind": "edm", "weights": "the model's file"})  # or however you load it
solver = Tableau.load("solver.json")
x_0 = sample(denoiser, solver, denoiser.noise_schedule.sigma_T * noise)  # noise of standard deviation 1"""


def _settings(tableau: Tableau) -> dict:
    return tableau.meta.get("params") or {key: tableau.meta[key] for key in ("solver", "steps") if key in tableau.meta}
