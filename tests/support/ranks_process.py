"""Work for several processes, each of which leaves what it got in a file."""

import os
from pathlib import Path

import numpy as np
import torch

from s4spipe import models
from s4spipe.evaluation import fid
from s4spipe.features.base import loading
from s4spipe.learning import adam, distance, gauss_newton, refinement, reward, search
from s4spipe.learning.families import LMS, Times
from s4spipe.runtime import distributed
from s4spipe.runtime.scratch import Scratch
from s4spipe.sampling.batches import Noises, generate
from s4spipe.sampling.tableau.adaptive import Adaptive
from s4spipe.solvers import registry, timesteps
from support import fits
from support.problems import march, noises

MODELS = Path(__file__).parent.parent.parent / "models"


def run(work, rank, world_size, folder):
    """`work` of the functions below as process `rank` of `world_size`, in `folder`, through which they meet."""
    os.chdir(folder)
    os.environ |= {distributed.MARK: "test", "RANK": str(rank), "WORLD_SIZE": str(world_size)}
    torch.set_num_threads(1)
    distributed.init()
    torch.save(globals()[work](), f"{work}-{rank}.pt")
    distributed.destroy()


def solving():
    denoiser = models.load({"weights": str(MODELS / "digits.safetensors")})
    table = registry.make("ipndm", "edm", denoiser.noise_schedule, 4)
    return [shard["x_0"] for shard in generate(denoiser, table, Noises("sample", 0, 50), 8, Scratch("solving"))]


def adapting():
    denoiser = models.load({"weights": str(MODELS / "digits.safetensors")})
    noises, solver = Noises("train", 0, 11), Adaptive(denoiser.noise_schedule, 1e-2, 100)
    return [{k: shard[k] for k in ("x_0", "evaluations")}
            for shard in generate(denoiser, solver, noises, 4, Scratch("adapting"))]  # fmt: skip


def task(validation, micro_batch_size):
    """To learn LMS and its times, from 22 pairs."""
    t = timesteps.build("logsnr", fits.NOISE, 4)
    student = LMS("ipndm", fits.NOISE, t, 3, Times(fits.NOISE, t))
    return fits.task(student, "learning", training=22, validation=validation, micro_batch_size=micro_batch_size)


def learned(history, student):
    return {"history": history, "parameters": {name: p.detach() for name, p in student.named_parameters()}}


def fitting():
    given = task(validation=11, micro_batch_size=2)
    history = adam.fit(given, adam.s4s_alt(2, 1, 1), distance.l2, adam.Adam(7, learning_rate=0.02, radius=0.5))
    return learned(history, given.student)


def newton():
    given = task(validation=2, micro_batch_size=20)
    history = gauss_newton.fit(given, ("times", "coefficients"), distance.l2, batch_size=7, steps=3)
    return learned(history, given.student)


def refining():
    given = task(validation=11, micro_batch_size=4)
    return learned(refinement.refine(given, lambda x: [x[:, :2].float(), x.float()], steps=2), given.student)


def searching():
    denoiser, x_T = fits.Net(), noises(4, scale=fits.NOISE.sigma_T)
    chosen = search.Settings(generations=2, candidates=7, seed=1)
    table, history = search.evolve(
        fits.NOISE, 3, lambda table: march(denoiser, table, x_T).square().mean().item(), chosen, Scratch("searching")
    )
    return {"best": table.to_dict(), "history": history, "calls": denoiser.calls}


def rewarding():
    given = task(validation=11, micro_batch_size=20)

    def objective(table):
        return march(fits.Net(), table, given.training.x_T).square().mean().item()

    chosen = reward.Settings(steps=3, pairs=4)
    history = reward.evolve_parameters(given.student, objective, objective, chosen, Scratch("rewarding"))
    return learned(history, given.student)


def seeing():
    cpu = torch.device("cpu")
    net = loading.load("digits", str(MODELS / "features.safetensors"), cpu)
    images = np.random.default_rng(0).integers(0, 256, (1100, 1, 8, 8), dtype=np.uint8)
    fid.BLOCK = 64 * 170  # rows of no whole number of batches
    return {
        "array": torch.cat(list(fid.features(images, net, cpu))),
        "small": torch.cat(list(fid.features(images[:3], net, cpu))),
        "statistics": fid.statistics(fid.features(images, net, cpu, batch_size=100)),
    }


def gathering():
    """The same numbers by every collective."""
    rank, world_size = distributed.rank(), distributed.world_size()
    own = distributed.shard(torch.arange(7))
    rows = own[:, None].double() * torch.tensor([1.0, 10.0]).double()
    distributed.barrier()
    return {
        "own": own,
        "list": distributed.shard(list("abcdefg")),
        "range": list(distributed.shard(range(7))),
        "sum": distributed.all_reduce(torch.tensor([1.0, rank])),
        "gathered": distributed.gather(rows, own, 7),
        "is_main": distributed.is_main(),
        "world_size": world_size,
    }
