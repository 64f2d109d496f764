"""The stages of this pipeline: `python -m benchmarks.rivals.stage NAME ...` in benchmarks/rivals (dvc.yaml)."""

from pathlib import Path

import click
import torch
import yaml
from tqdm import tqdm

from benchmarks.rivals import photos, rows
from benchmarks.rivals.models import FOLDER, NAMES, Model, load
from benchmarks.rivals.page import page
from s4spipe import classical, steps
from s4spipe.distill import frechet
from s4spipe.files import Scratch, fingerprint, read_json, read_tensors, write_json, write_tensors, write_text
from s4spipe.pairs import Pairs, draw
from s4spipe.sampling import sample
from s4spipe.tableau import Tableau

CPU = torch.device("cpu")
SPECIAL = ("classical", "gits", "dmn", "free_fit", "free")


def params() -> dict:
    return yaml.safe_load(Path("params.yaml").read_text())


@click.group()
def main() -> None:
    pass


@main.command()
def train() -> None:
    """The model of photographs' patches, and the two networks that see them."""
    settings = params()["training"]
    for which in photos.NETWORKS:
        photos.train_features(f"{FOLDER}/photos_{which}.safetensors", which)
    scratch = Scratch(fingerprint("photos", settings))
    photos.train_model(f"{FOLDER}/photos.safetensors", settings, CPU, scratch)
    scratch.clear()


def teacher(model: Model, nfe: int) -> Tableau:
    noise = model.denoiser.noise_schedule
    return classical.build("unipc_bh2", noise, steps.build("logsnr", noise, nfe))


@torch.inference_mode()
def made(model: Model, table: Tableau, stream: str, seed: int, count: int, size: int = 500) -> Pairs:
    """A solver's samples from the noises of a stream."""
    shards = []
    for start in tqdm(range(0, count, size), f"{stream} {table.name}", disable=None):
        x_T, condition = draw(model.denoiser, stream, seed, range(start, min(start + size, count)))
        shards.append((x_T, sample(model.denoiser, table, x_T, condition), condition))
    x_T, x_0, conditions = zip(*shards, strict=True)
    return Pairs(torch.cat(x_T), torch.cat(x_0), None if conditions[0] is None else torch.cat(conditions))


@main.command()
@click.argument("name", type=click.Choice(NAMES))
def reference(name: str) -> None:
    """The distribution to compare with: the teacher's, from other noises, or the data's where it is known."""
    settings, model = params(), load(name, CPU)
    table, count = teacher(model, settings["teacher"][name]), settings["reference"]
    drawn = model.data(count) if model.data else made(model, table, "reference", 0, count).x_0.clone()
    mean, covariance = frechet.statistics(model.judge(drawn).double())
    write_tensors(f"references/{name}.safetensors", {"mean": mean, "covariance": covariance})


@main.command()
@click.argument("name", type=click.Choice(NAMES))
@click.argument("seed", type=int)
def pairs(name: str, seed: int) -> None:
    """The teacher's samples, to learn from, validate by and compare with."""
    settings, model = params(), load(name, CPU)
    table = teacher(model, settings["teacher"][name])
    counts = {"train": settings["train"], "validation": settings["validation"], "sample": settings["samples"][name]}
    for stream, count in counts.items():
        made(model, table, stream, seed, count).save(f"pairs/{name}-{seed}/{stream}.safetensors")


@main.command()
@click.argument("name", type=click.Choice(NAMES))
@click.argument("seed", type=int)
@click.argument("row")
@click.option("--steps", "start", type=click.Choice(rows.SCHEDULES), help="Start on these, instead of the row's own.")
def learn(name: str, seed: int, row: str, start: str | None) -> None:
    """A row on a model with a seed: at every NFE."""
    settings, model = params(), load(name, CPU)
    if start:
        if "steps" not in settings["rows"].get(row, {}):
            raise click.UsageError(f"--steps: {row} has none in params.yaml, rows; name a row that Adam learns.")
        settings["rows"][row]["steps"] = start
    folder = f"pairs/{name}-{seed}"
    files = (f"references/{name}.safetensors", *sorted(Path(folder).glob("*.safetensors")))
    about = {key: settings[key] for key in ("budget", "teacher")} | {"row": settings["rows"].get(row)}
    scratch = Scratch(fingerprint(name, seed, row, about, files=files))
    mean_and_covariance = read_tensors(files[0])[0]
    goal = mean_and_covariance["mean"], mean_and_covariance["covariance"]
    training, validation, exact = (
        Pairs.load(f"{folder}/{stream}.safetensors", CPU) for stream in ("train", "validation", "sample")
    )

    def judged(table: Tableau) -> dict[str, float]:
        ours = exact.x_0 if row == "teacher" else made(model, table, "sample", seed, len(exact)).x_0
        error = (ours - exact.x_0).double().square().mean().sqrt().item()
        seen, ideal = (model.judge(x.clone()).double() for x in (ours, exact.x_0))
        to_teacher = frechet.distance(seen, frechet.statistics(ideal))[0]
        return {"fid": frechet.distance(seen, goal)[0], "to_teacher": to_teacher, "error": error}

    def cell(nfe: int) -> dict:
        if row == "teacher":
            return judged(teacher(model, 1))
        own = Scratch(f"{scratch.folder.name}/{nfe}")
        task = rows.Task(model, nfe, seed, settings["budget"], training, validation, own)
        table, cost = rows.make(row, settings["rows"], task)
        return judged(table) | cost | {"solver": table.meta.get("row", "")}

    nfes = [settings["teacher"][name]] if row == "teacher" else settings["nfe"]
    cells = [
        {"nfe": nfe, "seed": seed, **scratch.once(f"cell-{nfe}", lambda nfe=nfe: cell(nfe))}
        for nfe in tqdm(nfes, f"{name} {seed} {row}", disable=None)
    ]
    write_json(f"results/{name}/{row}{f'_{start}' if start else ''}-{seed}.json", cells)
    scratch.clear()


@main.command()
def report() -> None:
    """The tables, of the rows that have been run."""
    settings = params()
    learned = [f"{row}{start}" for row in settings["rows"] for start in ("", "_edm")]
    every = ("teacher", *SPECIAL[:3], *learned, *SPECIAL[3:])
    found = {name: {} for name in settings["models"]}
    for name in found:
        for row in every:
            if paths := sorted(Path(f"results/{name}").glob(f"{row}-[0-9]*.json")):
                found[name][row] = [cell for path in paths for cell in read_json(path)]
    write_text("results/tables.md", page(found, settings))


if __name__ == "__main__":
    main()
