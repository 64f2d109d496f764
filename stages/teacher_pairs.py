"""Make the teacher's pairs, for training and for validation."""

import dataclasses

import click

from s4spipe.learning.pairs import Pairs
from s4spipe.pipeline import stage
from s4spipe.pipeline.layout import Cell
from s4spipe.pipeline.schema import Params
from s4spipe.runtime import distributed
from s4spipe.runtime.scratch import Scratch, fingerprint
from s4spipe.sampling.batches import Noises, evaluations, generate
from s4spipe.sampling.tableau import adaptive


@stage.divided
def main(params: Params) -> None:
    teacher, places, denoiser = params.teacher, stage.layout(params), stage.load_model(params)
    solver = places.table(Cell("teacher", params.teacher.nfe))
    model = dataclasses.asdict(stage.model_settings(params))
    scratch = Scratch(fingerprint("pairs", model, teacher.seed, files=(params.model.weights, solver)))
    for stream, count in {"train": teacher.train, "validation": teacher.validation}.items():
        noises = Noises(stream, teacher.seed, count)
        shards = list(generate(denoiser, adaptive.load(solver), noises, params.run.batch_size, scratch))
        if distributed.is_main():
            spent = evaluations(shards)
            Pairs.of(shards).save(places.pairs(stream), {"evaluations": spent} if spent else None)
            if spent:
                click.echo(f"{stream}: {spent['mean']:g} evaluations per sample, {spent['most']} at most")
    if distributed.is_main():
        scratch.clear()


if __name__ == "__main__":
    main()
