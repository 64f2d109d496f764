"""Refine a learned solver, so that the distribution of its samples matches the teacher's, and with a reward so that
they have more of it."""

import dataclasses

import click

from s4spipe.features.random import BESIDE, beside
from s4spipe.learning import refinement
from s4spipe.learning.families import Free
from s4spipe.learning.pairs import Pairs
from s4spipe.learning.task import Task, check_history, plain
from s4spipe.pipeline import stage
from s4spipe.pipeline.layout import Cell
from s4spipe.pipeline.schema import Params
from s4spipe.runtime import distributed
from s4spipe.runtime.files import write_json
from s4spipe.runtime.scratch import Scratch, fingerprint
from s4spipe.sampling.tableau import Tableau


@stage.divided
@click.argument("name")
@click.argument("nfe", type=int)
def main(params: Params, name: str, nfe: int) -> None:
    settings, seeing, places, cell = params.refine, params.perceptual, stage.layout(params), Cell(name, nfe)
    denoiser = stage.load_model(params, channels_last=True)
    training = Pairs.load(places.pairs("train"), denoiser.device, settings.pairs)
    validation = Pairs.load(places.pairs("validation"), denoiser.device, settings.validation_pairs)
    net = stage.features_network(params, "perceptual", denoiser.device)
    fitted, _ = places.learned("fits", cell)
    files = [params.model.weights, fitted, seeing.weights, places.pairs("train"), places.pairs("validation")]
    files += stage.reward_files(settings.reward)
    model, block = dataclasses.asdict(stage.model_settings(params)), settings.model_dump(exclude_none=True)
    scratch = Scratch(fingerprint("refine", BESIDE, nfe, block, seeing.model_dump(), model, files=tuple(files)))
    start = Tableau.load(fitted)
    student = Free(start, late=start.meta.get("params", {}).get("late", True))

    feature_fn = beside(net.embed, denoiser.decode)
    rewarded, weight = None, 1.0
    if settings.reward:
        rewarded, weight = stage.reward(params, settings.reward, "refine.reward", denoiser), settings.reward.weight
    task = Task(student, denoiser, training, validation, scratch, settings.seed, params.run.micro_batch_size,
                f"refine {name} {nfe} NFE")  # fmt: skip
    history = refinement.refine(task, feature_fn, refinement.steps_at(settings.steps, nfe), rewarded, weight)
    check_history(history, task.description)
    if not distributed.is_main():
        return
    solver_path, history_path = places.learned("solvers", cell)
    write_json(history_path, plain(history))
    student(name, start.meta | {"refined": block}).save(solver_path)
    scratch.clear()


if __name__ == "__main__":
    main()
