"""Learn a solver from the teacher's pairs, as its block in `learners` of params.yaml says."""

import dataclasses
import json
import math
from collections.abc import Sequence
from functools import partial
from typing import Any

import click
import torch

import s4spipe
from s4spipe.features.base import frechet
from s4spipe.features.random import beside
from s4spipe.learning import adam, distance, frequency, gauss_newton, objective, reward, search, starts, whitening
from s4spipe.learning.families import LMS, Banded, Family, Times
from s4spipe.learning.pairs import Pairs
from s4spipe.learning.task import COEFFICIENTS, TIMES, Task, check_history, plain
from s4spipe.pipeline import resolve, stage
from s4spipe.pipeline.layout import Cell
from s4spipe.pipeline.schema import FRECHET, Learner, Params
from s4spipe.runtime import distributed
from s4spipe.runtime.files import write_json, write_text
from s4spipe.runtime.scratch import Scratch, fingerprint, signature
from s4spipe.sampling.loop import sample
from s4spipe.sampling.tableau import Tableau
from s4spipe.sampling.tableau.basis import PLAIN, Basis
from s4spipe.sampling.tableau.lists import load_all


@stage.divided
@click.argument("folder", type=click.Choice(["solvers", "fits"]))
@click.argument("name")
@click.argument("nfe", type=int)
def main(params: Params, folder: str, name: str, nfe: int) -> None:
    settings, places, cell = resolve.learner(params, name), stage.layout(params), Cell(name, nfe)
    denoiser = stage.load_model(params, channels_last=settings.optimizer == "gauss_newton")
    training = Pairs.load(places.pairs("train"), denoiser.device, settings.pairs)
    validation = Pairs.load(places.pairs("validation"), denoiser.device, settings.validation_pairs)
    without = settings.optimizer in ("search", "evolution")  # gradients; a reward is then guarded
    sees = settings.distance in (*distance.PERCEPTUAL, FRECHET) or (without and settings.reward)
    seeing = params.perceptual if sees else None
    net: Any = stage.features_network(params, "perceptual", denoiser.device) if seeing else None
    micro_batch_size = params.run.micro_batch_size
    trial = objective.Samples(denoiser, training.take(torch.arange(min(starts.TRIAL_PAIRS, len(training)))),
                              micro_batch_size)  # fmt: skip
    m = None
    if settings.family == "free" and settings.mean != "none":
        m = starts.mean(training.x_0, settings.mean or "image", denoiser.frequencies)
    start, distance_fn = start_of(settings, load_all(places.starts(cell)), trial, net, name, m)
    files = [params.model.weights, places.starts(cell), places.pairs("train"), places.pairs("validation")]
    files += [seeing.weights] if seeing else []
    files += stage.reward_files(settings.reward)
    model, block = dataclasses.asdict(stage.model_settings(params)), settings.model_dump(exclude_none=True)
    eyes = seeing.model_dump() if seeing else {}
    scratch = Scratch(fingerprint(name, nfe, block, eyes, model, whitening.PAIRS, files=tuple(files)))
    streams = [objective.Samples(denoiser, pairs, micro_batch_size) for pairs in (training, validation)]
    objectives = []
    if without:
        objectives = objectives_of(params, name, streams, distance_fn, net, start)
    about: dict[str, Any] = {}
    lines: list[dict[str, Any]] = []
    if settings.optimizer == "search":
        solver, history, lines = searched(settings, start, objectives, scratch, name)
    else:
        ends = training.x_0 if denoiser.frequencies else training.x_0.flatten(1)  # such have no bands
        basis = frequency.bands(ends, settings.bands, settings.channels)
        newton = settings.optimizer == "gauss_newton"
        student = student_of(settings, start, PLAIN if newton else basis)  # stays on the CPU: a few dozen numbers
        task = Task(student, denoiser, training, validation, scratch, settings.seed, micro_batch_size,
                    f"{name} {nfe} NFE")  # fmt: skip
        if newton:
            learns = {"coefficients": (COEFFICIENTS,), "times": (TIMES,), "joint": (COEFFICIENTS, TIMES)}
            fit = partial(gauss_newton.fit, learns=learns[settings.learns], distance=distance_fn,
                          batch_size=settings.batch_size, steps=settings.epochs, pace=gauss_newton.BRISK)  # fmt: skip
            student, history = gauss_newton.widened(task, basis, fit)
        elif settings.optimizer == "evolution":
            evolution = reward.Settings(settings.epochs, settings.batch_size, settings.learning_rate,
                                        seed=settings.seed)  # fmt: skip
            history = reward.evolve_parameters(student, objectives[0], objectives[1], evolution, scratch)
        else:
            rates = adam.Adam(settings.batch_size, settings.learning_rate, settings.radius)
            raised = None
            if settings.reward:
                rewarded = stage.reward(params, settings.reward, f"learners.{name}.reward", denoiser)
                raised = adam.Reward(rewarded, settings.reward.weight)
            history = adam.fit(task, phases(settings), distance_fn, rates, raised)
        about = student.metadata()
        solver = student(name, {})
    check_history(history, f"{name} {nfe} NFE")
    if not distributed.is_main():
        return
    solver_path, history_path = places.learned(folder, cell)
    meta = {
        "family": settings.family,
        **start.meta,
        "model": denoiser.identity,
        "pairs": signature(places.pairs("train").parent),
        "s4spipe": s4spipe.__version__,
        "params": block,
        **about,
    }
    write_json(history_path, plain(history))
    if lines:
        write_text(history_path.parent / "candidates.jsonl", "".join(json.dumps(line) + "\n" for line in lines))
    dataclasses.replace(solver, meta=meta).save(solver_path)
    scratch.clear()


def start_of(
    settings: Learner,
    candidates: Sequence[Tableau],
    trial: objective.Samples,
    net: Any,
    name: str,
    m: torch.Tensor | None,
) -> tuple[Tableau, distance.Distance]:
    """The best of the candidates on the trial pairs, with the constant m if it is given, and the distance to learn by,
    which may be in units of its."""
    denoiser, pairs = trial.denoiser, trial.pairs
    distance_fn = distance.build("l2" if settings.distance == FRECHET else settings.distance, net, denoiser.decode)
    starts.check_noise(candidates, denoiser.noise_schedule)
    if settings.late is False:
        candidates = starts.early(candidates, name)
    if m is not None:
        candidates = [starts.with_constant(table, m) for table in candidates]
    start = starts.choose(candidates, lambda table: gauss_newton.mean_distance(table, denoiser, pairs, distance_fn,
                                                                              trial.size))  # fmt: skip
    if settings.distance in distance.ROBUST:
        residuals = [distance.seen_by(net, denoiser.decode), distance.pixels]
        with torch.no_grad():
            ends = sample(denoiser, start, pairs.x_T, pairs.condition)
        distance_fn = distance.robust(residuals[: 1 + (settings.distance == "mixed")], ends, pairs.x_0)
    return start, distance_fn


def objectives_of(
    params: Params,
    name: str,
    streams: Sequence[objective.Samples],
    by_pairs: distance.DistanceFn,
    net: Any,
    start: Tableau,
) -> list[search.Objective]:
    """What a search or an evolution minimises on each of these samples."""
    settings, denoiser = resolve.learner(params, name), streams[0].denoiser
    if not settings.reward and settings.distance != FRECHET:
        return [objective.Imitation(samples, by_pairs) for samples in streams]
    if not settings.reward:
        return [objective.Frechet(samples, lambda x: [net.embed(denoiser.decode(x))], start) for samples in streams]
    rewarded = stage.reward(params, settings.reward, f"learners.{name}.reward", denoiser)
    eyes = beside(net.embed, denoiser.decode)
    guards = [objective.Frechet(samples, eyes, start, frechet.extrapolated) for samples in streams]
    return [objective.Rewarded(rewarded, guard) for guard in guards]


def searched(
    settings: Learner, start: Tableau, objectives: list[search.Objective], scratch: Scratch, name: str
) -> tuple[Tableau, list[dict[str, Any]], list[dict[str, Any]]]:
    """The solver that a search finds, a row for every generation, and one for every candidate."""
    solver = start.meta["solver"] if settings.family == "fixed" else None
    chosen = search.Settings(settings.epochs, settings.batch_size, solver=solver, seed=settings.seed)
    found, candidates = search.evolve(start.noise, start.nfe, objectives[0], chosen, scratch, objectives[1])
    history: list[dict[str, Any]] = []
    best = None
    for generation in range(1 + settings.epochs):
        rows = [row for row in candidates if row["generation"] == generation]
        best = next((row for row in rows if "validation" in row), best)
        assert best is not None  # as the first generation has one
        validation = math.inf if best["validation"] is None else best["validation"]
        history.append({"epoch": generation, "train": best["value"], "validation": validation})
    return dataclasses.replace(found, name=name), history, candidates


def student_of(settings: Learner, start: Tableau, basis: Basis) -> Family:
    """The family to learn. Raises UserError for a start that it cannot have."""
    times = None
    if settings.family != "free" and settings.learns != "coefficients":
        times = Times(start.noise, start.t, settings.decoupling)
    options = {key: getattr(settings, key) for key in ("order", "consistent", "shared")}
    options["late"] = settings.late is not False
    student = Banded.of(settings.family, start, times, basis, **options)
    if settings.gaussian and isinstance(student, LMS):
        student.randomise(settings.seed)
    return student


def phases(settings: Learner) -> list[adam.Phase]:
    """The phases of learning by Adam."""
    if settings.learns == "alternating":
        return adam.s4s_alt(settings.alternations, settings.epochs, settings.warmup_epochs)
    if settings.learns == "joint":
        return adam.joint(settings.epochs, settings.warmup_epochs)
    if settings.learns == "coefficients":
        return adam.s4s(settings.epochs)
    return [adam.Phase((TIMES,), settings.epochs)]


if __name__ == "__main__":
    main()
