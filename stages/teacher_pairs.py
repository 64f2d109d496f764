"""Make the teacher's pairs, for training and for validation."""

from s4spipe import models, ranks, stage
from s4spipe.files import Scratch, fingerprint
from s4spipe.pairs import Pairs, solve
from s4spipe.params import Params, device
from s4spipe.tableau import Tableau


@stage.divided
def main(params: Params) -> None:
    teacher, model, on = params.teacher, params.model.model_dump(), device(params.run.device)
    solver = params.solver_path("teacher", teacher.nfe)
    denoiser, tableau = models.load(model, on, compiled=params.run.compile), Tableau.load(solver)
    scratch = Scratch(fingerprint("pairs", model, teacher.seed, files=(params.model.weights, solver)))
    for stream, count in {"train": teacher.train, "validation": teacher.validation}.items():
        shards = list(solve(denoiser, tableau, stream, teacher.seed, count, params.run.batch_size, on, scratch,
                            conditional=params.model.condition != "none"))  # fmt: skip
        if ranks.first():
            Pairs.of(shards).save(f"pairs/{stream}.safetensors")
    if ranks.first():
        scratch.clear()


if __name__ == "__main__":
    main()
