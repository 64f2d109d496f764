"""Learn one solver for all NFEs from the teacher's pairs, as its block in `learners` of params.yaml says."""

import dataclasses

import click
import torch

import s4spipe
from s4spipe.learning import distance, gauss_newton, span, starts
from s4spipe.learning.pairs import Pairs
from s4spipe.learning.task import Task, check_history, plain
from s4spipe.pipeline import resolve, stage, tables
from s4spipe.pipeline.schema import Params
from s4spipe.runtime import distributed
from s4spipe.runtime.files import read_json, write_json
from s4spipe.runtime.scratch import Scratch, fingerprint, signature
from s4spipe.sampling.tableau import Tableau
from s4spipe.sampling.tableau.lists import save_all


@stage.divided
@click.argument("name")
def main(params: Params, name: str) -> None:
    settings, places, nfes = resolve.learner(params, name), stage.layout(params), sorted(params.nfe)
    denoiser = stage.load_model(params, channels_last=True)
    training = Pairs.load(places.pairs("train"), denoiser.device, settings.pairs)
    validation = Pairs.load(places.pairs("validation"), denoiser.device, settings.validation_pairs)
    distance_fn, size = distance.build(settings.distance, None, denoiser.decode), params.run.micro_batch_size
    trial = training.take(torch.arange(min(starts.TRIAL_PAIRS, len(training))))

    def loss(table: Tableau) -> float:
        return gauss_newton.mean_distance(table, denoiser, trial, distance_fn, size)

    named = read_json(places.schedules / "inputs.json")
    named |= {schedule: read_json(places.schedules / f"{schedule}.json") for schedule in params.searched}
    start, noise = params.starts[name], denoiser.noise_schedule
    candidates = {nfe: tables.candidates(name, start, noise, nfe, named) for nfe in nfes}
    student = span.Span(span.choose(candidates, loss))
    files = (params.model.weights, places.pairs("train"), places.pairs("validation"))
    model, block = dataclasses.asdict(stage.model_settings(params)), settings.model_dump(exclude_none=True)
    scratch = Scratch(fingerprint("span", name, nfes, start.model_dump(), named, block, model, files=files))
    task = Task(
        span.Member(student, nfes[-1]),
        denoiser,
        training,
        validation,
        scratch,
        settings.seed,
        size,
        f"{name} {nfes[0]}-{nfes[-1]} NFE",
    )
    history = span.fit(student, task, distance_fn, settings.batch_size, settings.epochs)
    check_history(history, task.description)
    if not distributed.is_main():
        return
    meta = {
        "family": settings.family,
        "spans": nfes,
        "numbers": student.parameter_count,
        "model": denoiser.identity,
        "pairs": signature(places.pairs("train").parent),
        "s4spipe": s4spipe.__version__,
        "params": block,
    }
    solvers_path, history_path = places.span(name)
    save_all(solvers_path, [student(nfe, name, student.starts[nfe].meta | meta).detached() for nfe in nfes])
    write_json(history_path, plain(history))
    scratch.clear()


if __name__ == "__main__":
    main()
