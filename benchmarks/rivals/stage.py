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
def pairs(name: str) -> None:
    """The teacher's samples, to learn from, validate by and compare with; its distribution, from other noises."""
    settings = params()
    model = load(name, CPU)
    table = teacher(model, settings["teacher"][name])
    for seed in settings["seeds"]:
        for stream, count in (("train", "train"), ("validation", "validation"), ("sample", "samples")):
            made(model, table, stream, seed, settings[count]).save(f"pairs/{name}/{stream}-{seed}.safetensors")
    if model.data:
        drawn = model.data(settings["reference"])
    else:
        drawn = made(model, table, "reference", 0, settings["reference"]).x_0.clone()
    seen = model.judge(drawn).double()
    mean, covariance = frechet.statistics(seen)
    write_tensors(f"pairs/{name}/reference.safetensors", {"mean": mean, "covariance": covariance})


@main.command()
@click.argument("name", type=click.Choice(NAMES))
@click.argument("row")
def learn(name: str, row: str) -> None:
    """A row on a model: at every NFE, with every seed."""
    settings, model = params(), load(name, CPU)
    files = tuple(sorted(Path(f"pairs/{name}").glob("*.safetensors")))
    about = {key: settings[key] for key in ("budget", "teacher")} | {"row": settings["rows"].get(row)}
    scratch = Scratch(fingerprint(name, row, about, files=files))
    reference = read_tensors(f"pairs/{name}/reference.safetensors")[0]
    goal, cells = (reference["mean"], reference["covariance"]), []

    def judged(table: Tableau, seed: int) -> dict[str, float]:
        exact = Pairs.load(f"pairs/{name}/sample-{seed}.safetensors", CPU)
        ours = exact.x_0 if row == "teacher" else made(model, table, "sample", seed, len(exact)).x_0
        error = (ours - exact.x_0).double().square().mean().sqrt().item()
        seen, ideal = (model.judge(x.clone()).double() for x in (ours, exact.x_0))
        to_teacher = frechet.distance(seen, frechet.statistics(ideal))[0]
        return {"fid": frechet.distance(seen, goal)[0], "to_teacher": to_teacher, "error": error}

    def cell(nfe: int, seed: int) -> dict:
        if row == "teacher":
            return judged(teacher(model, 1), seed)
        training, validation = (
            Pairs.load(f"pairs/{name}/{stream}-{seed}.safetensors", CPU) for stream in ("train", "validation")
        )
        own = Scratch(f"{scratch.folder.name}/{nfe}-{seed}")
        task = rows.Task(model, nfe, seed, settings["budget"], training, validation, own)
        table, cost = rows.make(row, settings["rows"], task)
        return judged(table, seed) | cost | {"solver": table.meta.get("row", "")}

    nfes = [settings["teacher"][name]] if row == "teacher" else settings["nfe"]
    grid = [(nfe, seed) for seed in settings["seeds"] for nfe in nfes]
    for nfe, seed in tqdm(grid, f"{name} {row}", disable=None):
        found = scratch.once(f"cell-{nfe}-{seed}", lambda nfe=nfe, seed=seed: cell(nfe, seed))
        cells.append({"nfe": nfe, "seed": seed, **found})
    write_json(f"results/{name}/{row}.json", cells)
    scratch.clear()


@main.command()
def report() -> None:
    """The tables, of the rows that have been run."""
    settings = params()
    every = ("teacher", *SPECIAL[:3], *settings["rows"], *SPECIAL[3:])
    found = {
        name: {row: read_json(path) for row in every if (path := Path(f"results/{name}/{row}.json")).exists()}
        for name in settings["models"]
    }
    write_text("results/tables.md", page(found, settings))


if __name__ == "__main__":
    main()
