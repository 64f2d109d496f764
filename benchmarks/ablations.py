"""The choices inside S4S and S4S-Alt, one changed at a time.

Run as `python -m benchmarks.ablations`, after `dvc repro teacher_pairs reference`. Everything else is as params.yaml
says. A second or interrupted run keeps the rows that are done.
"""

from itertools import accumulate

import click
from tqdm import tqdm

from benchmarks.common import PAGES, Setting
from s4spipe.features.base import loading
from s4spipe.learning import adam, distance
from s4spipe.learning.task import COEFFICIENTS, TIMES, Task
from s4spipe.pipeline import resolve, stage
from s4spipe.pipeline.schema import Learner, Params, Start
from s4spipe.runtime.files import write_text
from s4spipe.runtime.scratch import Scratch, fingerprint
from s4spipe.sampling.loop import sample
from s4spipe.sampling.tableau import Tableau
from s4spipe.sampling.tableau.basis import PLAIN
from s4spipe.solvers import registry
from stages import learn

# name -> what is changed in the block learners.s4s_alt, and in starts.s4s_alt
ROWS: dict[str, tuple[dict, dict]] = {
    "as params.yaml has it": ({}, {}),
    "radius 0": ({"radius": 0.0}, {}),
    "radius 0.005": ({"radius": 0.005}, {}),
    "radius 0.05": ({"radius": 0.05}, {}),
    "radius 0.2": ({"radius": 0.2}, {}),
    "order 1": ({"order": 1}, {"solver": "ipndm_1"}),
    "order 2": ({"order": 2}, {"solver": "ipndm_2"}),
    "order 4": ({"order": 4}, {}),
    "order 5, the whole history": ({"order": 5}, {}),
    "joint": ({"learns": "joint", "epochs": 16}, {}),
    "start: dpmpp_3m": ({}, {"solver": "dpmpp_3m"}),
    "start: ddim": ({}, {"solver": "ddim"}),
    "start: unip_bh2": ({}, {"solver": "unip_bh2"}),
    "start: Gaussian": ({"gaussian": True}, {}),
    "rows keep their sum": ({"consistent": True}, {}),
    "coefficients the same at all times": ({"shared": True}, {}),
    "distance l2": ({"distance": "l2"}, {}),
    "distance perceptual": ({"distance": "perceptual"}, {}),
    "100 pairs": ({"pairs": 100}, {}),
    "300 pairs": ({"pairs": 300}, {}),
    "network times are the steps'": ({"decoupling": 0.0}, {}),
    "start schedule edm": ({}, {"schedules": ["edm"]}),
    "start schedule logsnr": ({}, {"schedules": ["logsnr"]}),
}


@stage.command
@click.option("--nfe", default=5, show_default=True)
@click.option("--count", default=10_000, show_default=True, help="Samples per row.")
def main(params: Params, nfe: int, count: int) -> None:
    setting, alt, alt_start = Setting(params), resolve.learner(params, "s4s_alt"), params.starts["s4s_alt"]
    files = (params.model.weights, params.fid.features, setting.places.reference, *setting.pair_files)
    scratch = Scratch(fingerprint("ablations", nfe, count, alt.model_dump(), alt_start.model_dump(), files=files))
    seeds = (params.sample.seed, params.sample.seed + 1)
    noises, others = (setting.draw("sample", count, seed) for seed in seeds)
    teacher = Tableau.load(setting.places.table(resolve.teacher(params)))
    same = [part[:1000] for part in noises]
    ideal = sample(setting.denoiser, teacher, *same)

    def row(name: str) -> dict:
        changed, changed_start = ROWS[name]
        block = Learner.model_validate(alt.model_dump() | changed)
        start = Start.model_validate(alt_start.model_dump() | changed_start)
        student = learn.student_of(block, registry.make(start.solver, start.schedules[0], setting.noise, nfe), PLAIN)
        net = loading.load(params.perceptual.network, params.perceptual.weights, setting.device)
        distance_fn = distance.build(block.distance, net, setting.denoiser.decode)
        training, validation = setting.pairs(block.pairs, block.validation_pairs)
        task = Task(student, setting.denoiser, training, validation, Scratch(f"{scratch.folder.name}/{name}"),
                    block.seed, params.run.micro_batch_size, name)  # fmt: skip
        rates = adam.Adam(block.batch_size, block.learning_rate, block.radius)
        history = adam.fit(task, learn.phases(block), distance_fn, rates)
        lows = accumulate((epoch["validation"] for epoch in history), min)
        kept = [epoch["learns"] for epoch, low in zip(history[1:], lows, strict=False) if epoch["validation"] < low]
        epochs = {what: sum(what in learns for learns in kept) for what in (TIMES, COEFFICIENTS)}
        rms = (sample(setting.denoiser, student(), *same) - ideal).square().mean().sqrt().item()
        fids = {"fid": setting.fids(student(), *noises)["fid"], "others": setting.fids(student(), *others)["fid"]}
        return fids | {"distance": rms} | epochs

    lines = ["| changed | FID | FID, other noises | teacher distance | epochs kept: times, coefficients |"]
    lines.append("|---|--:|--:|--:|--:|")
    for number, name in enumerate(tqdm(ROWS, "rows", disable=None)):
        value = scratch.once(f"row-{number}", lambda name=name: row(name))
        kept = f"{value[TIMES]}, {value[COEFFICIENTS]}"
        lines.append(f"| {name} | {value['fid']:.3f} | {value['others']:.3f} | {value['distance']:.4f} | {kept} |")
        write_text(PAGES / f"ablations/{nfe}.md", "\n".join([*lines, ""]))


if __name__ == "__main__":
    main()
