"""The memory that `s4spipe estimate` foresees is that of the real work."""

import os
import resource

import pytest
import torch
from support import parameters
from support.forks import FORK
from support.pipeline import ROOT

from s4spipe import models
from s4spipe.commands import memory
from s4spipe.learning import distance, gauss_newton
from s4spipe.learning.families import Free
from s4spipe.learning.pairs import Pairs
from s4spipe.learning.task import COEFFICIENTS, TIMES, Task
from s4spipe.pipeline import params
from s4spipe.runtime.scratch import Scratch
from s4spipe.sampling.batches import Noises, draw, generate
from s4spipe.solvers import registry

WEIGHTS = str(ROOT / "models/digits.safetensors")
FACTOR = 1.7  # between what is foreseen and what the system measures: its allocator keeps pieces
BATCH, NFE = 500, 4


def settings(*changes):
    given = [("nfe", [NFE]), ("run.device", "cpu"), ("run.batch_size", BATCH), ("run.micro_batch_size", BATCH),
             ("teacher.nfe", NFE), ("sample.count", BATCH), ("learned", ["free"]), ("refined", [])]  # fmt: skip
    return params.parse(parameters.changed(*given, *changes), ROOT)


def sampled(denoiser, count):
    table = registry.make("ddim", "edm", denoiser.noise_schedule, NFE)
    return list(generate(denoiser, table, Noises("sample", 0, count), count))


def fitted(denoiser, count):
    x_T, condition = draw(denoiser, "train", 0, range(count))
    pairs = Pairs(x_T, torch.zeros_like(x_T), condition)
    student = Free(registry.make("ipndm", "edm", denoiser.noise_schedule, NFE))
    task = Task(student, denoiser, pairs, pairs.take(torch.arange(8)), Scratch(f"memory-{count}"))
    gauss_newton.fit(task, (COEFFICIENTS, TIMES), distance.l2, count, steps=1)


def measured(work, folder, sent):
    """What the process takes beyond what a small piece of the work has taken, in bytes."""
    os.chdir(folder)
    torch.set_num_threads(1)
    denoiser = models.load({"weights": WEIGHTS})
    peaks = []
    for count in (8, BATCH):
        globals()[work](denoiser, count)
        peaks.append(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 2**10)
    sent.send(peaks[1] - peaks[0])


@pytest.mark.parametrize(("work", "foresee"), [("sampled", memory.of_sampling), ("fitted", memory.of_learning)])
def test_the_memory_that_is_foreseen_is_that_of_the_work(work, foresee, tmp_path):
    found = settings(("learners.free.batch_size", BATCH))
    denoiser = models.load({"weights": WEIGHTS})
    estimate = foresee(found, denoiser)
    receiving, sending = FORK.Pipe(duplex=False)
    process = FORK.Process(target=measured, args=(work, tmp_path, sending))
    process.start()
    process.join()
    assert process.exitcode == 0
    true = receiving.recv()
    assert 1 / FACTOR < true / estimate < FACTOR


def test_what_is_foreseen_follows_the_batch_sizes_and_the_number_of_evaluations():
    denoiser = models.load({"weights": WEIGHTS})
    of = {key: (memory.of_sampling(found, denoiser), memory.of_learning(found, denoiser)) for key, found in {
        "small": settings(("run.batch_size", 50), ("run.micro_batch_size", 20)),
        "batch": settings(("run.batch_size", 100), ("run.micro_batch_size", 20)),
        "micro": settings(("run.batch_size", 50), ("run.micro_batch_size", 40)),
        "nfe": settings(("run.batch_size", 50), ("run.micro_batch_size", 20), ("nfe", [10])),
        "none": settings(("run.batch_size", 50), ("run.micro_batch_size", 20), ("learned", [])),
    }.items()}  # fmt: skip
    weights = sum(p.numel() for p in denoiser.parameters()) * 4
    (sampling, learning), added = of["small"], of["batch"][0] - weights
    assert added == pytest.approx(2 * (sampling - weights), rel=0.1)
    assert of["batch"][1] == learning
    assert of["micro"][0] == sampling
    assert 1.3 * learning < of["micro"][1] < 2 * learning
    assert of["nfe"][0] - sampling == 6 * 50 * 64 * 8  # predictions of 64 pixels
    assert of["nfe"][1] - learning == 6 * 20 * 64 * (4 + 3 * 8)
    assert of["none"] == (sampling, 0)


def test_tensors_are_counted_while_they_live():
    def work():
        kept = torch.zeros(1000, dtype=torch.float64)
        for _ in range(5):
            other = kept + 1  # 8000 bytes each, two at a time
            other.mul_(2)
            _ = other[:10]  # a view: no memory of its own
        return kept

    count = memory.peak(torch.device("cpu"), work)
    assert 16_000 <= count <= 4 * 16_000
    assert memory.peak(torch.device("cpu"), lambda: None) == 0


def test_a_gpus_allocator_is_asked(monkeypatch):
    taken = iter([100])
    monkeypatch.setattr(torch.cuda, "reset_peak_memory_stats", lambda device: None)
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda device: next(taken))
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda device: 350)
    assert memory.peak(torch.device("cuda"), lambda: None) == 250
