"""The choices inside S4S and S4S-Alt, one changed at a time.

Run as `python -m benchmarks.ablations`, after `dvc repro teacher_pairs reference`. Everything else is as params.yaml
says. Rows that are done are kept, so a second or interrupted run goes on from them.
"""

from itertools import accumulate

import click
from tqdm import tqdm

from benchmarks.common import Setting
from s4spipe import distance, features, stage, steps
from s4spipe.distill import learn
from s4spipe.distill.fit import COEFFICIENTS, TIMES, fit
from s4spipe.families import FAMILIES, Times
from s4spipe.files import Scratch, fingerprint, write_text
from s4spipe.pairs import Pairs
from s4spipe.params import Arm, Params
from s4spipe.sampling import sample
from s4spipe.tableau import Tableau

# name -> what is changed in s4s_alt
OF_S4S_ALT = {
    "as params.yaml has it": {},
    "radius 0": {"radius": 0.0},
    "radius 0.005": {"radius": 0.005},
    "radius 0.05": {"radius": 0.05},
    "radius 0.2": {"radius": 0.2},
    "order 1": {"order": 1, "init": "ddim"},
    "order 2": {"order": 2, "init": "dpmpp_2m"},
    "order 4": {"order": 4},
    "order 5, the whole history": {"order": 5},
    "joint": {"joint": True},
    "start: ipndm": {"init": "ipndm"},
    "start: ddim": {"init": "ddim"},
    "start: unip_bh2": {"init": "unip_bh2"},
    "start: Gaussian": {"gaussian": True},
    "rows keep their sum": {"consistent": True},
    "coefficients the same at all times": {"shared": True},
    "distance pseudo_huber": {"distance": "pseudo_huber"},
    "distance perceptual": {"distance": "perceptual"},
    "100 pairs": {"pairs": 100},
    "300 pairs": {"pairs": 300},
    "network times are the steps'": {"decoupling": 0.0},
    "start schedule edm": {"steps": "edm"},
    "start schedule logsnr": {"steps": "logsnr"},
}


@stage.command
@click.option("--nfe", default=5, show_default=True)
@click.option("--count", default=10_000, show_default=True, help="Samples per row.")
def main(params: Params, nfe: int, count: int) -> None:
    setting = Setting(params)
    files = (params.model.weights, params.fid.features, params.fid.reference, *learn.PAIRS)
    scratch = Scratch(fingerprint("ablations", nfe, count, params.s4s_alt.model_dump(), files=files))
    seeds = (params.sample.seed, params.sample.seed + 1)
    noises, others = (setting.draw("sample", count, seed) for seed in seeds)
    teacher = Tableau.load(params.solver_path("teacher", params.teacher.nfe))
    same = [part[:1000] for part in noises]
    ideal = sample(setting.denoiser, teacher, *same)

    def row(change: dict, name: str) -> dict:
        block = Arm.model_validate(params.s4s_alt.model_dump() | change)
        training, validation = (
            Pairs.load(path, setting.device, size)
            for path, size in zip(learn.PAIRS, (block.pairs, block.validation_pairs), strict=True)
        )
        t = steps.build(block.steps, setting.noise, nfe)
        times = Times(setting.noise, t, block.decoupling)
        rows = block.consistent, block.shared
        student = FAMILIES[block.family](block.init, setting.noise, t, nfe, block.order, times, *rows)
        if block.gaussian:
            student.randomise(block.seed)
        seeing = params.perceptual
        net = features.load(seeing.network, seeing.weights, setting.device)
        apart = distance.build(block.distance, net)
        history = fit(student, learn.phases(block), setting.denoiser, training, validation, apart,
                      batch_size=block.batch_size, at_once=params.run.fit_batch_size,
                      learning_rate=block.learning_rate, radius=block.radius, seed=block.seed,
                      scratch=Scratch(f"{scratch.folder.name}/{name}"), description=name)  # fmt: skip
        lows = accumulate((epoch["validation"] for epoch in history), min)
        kept = [epoch["learns"] for epoch, low in zip(history[1:], lows, strict=False) if epoch["validation"] < low]
        said = {what: sum(what in learns for learns in kept) for what in (TIMES, COEFFICIENTS)}
        apart = (sample(setting.denoiser, student(), *same) - ideal).square().mean().sqrt().item()
        fids = {"fid": setting.fids(student(), *noises)["fid"], "others": setting.fids(student(), *others)["fid"]}
        return fids | {"distance": apart} | said

    lines = ["| changed | FID | FID, other noises | teacher distance | epochs kept: times, coefficients |"]
    lines.append("|---|--:|--:|--:|--:|")
    for number, (name, change) in enumerate(tqdm(OF_S4S_ALT.items(), "rows", disable=None)):
        value = scratch.once(f"row-{number}", lambda change=change, name=name: row(change, name))
        kept = f"{value[TIMES]}, {value[COEFFICIENTS]}"
        lines.append(f"| {name} | {value['fid']:.3f} | {value['others']:.3f} | {value['distance']:.4f} | {kept} |")
        write_text(f"docs/ablations/{nfe}.md", "\n".join([*lines, ""]))


if __name__ == "__main__":
    main()
