"""The schema of params.yaml: the type, default and meaning of every key."""

from typing import Annotated, Any, Literal

from pydantic import Field

from s4spipe.features import FOR_DISTANCE, FOR_FID, MODES
from s4spipe.features.rewards import REWARDS
from s4spipe.learning.distance import DISTANCES
from s4spipe.learning.families import FAMILIES
from s4spipe.models.base.loading import KINDS, PRECISIONS
from s4spipe.pipeline.fields import (
    AnySolver,
    Argument,
    Bands,
    Block,
    Classical,
    Count,
    Epochs,
    File,
    Fraction,
    Launcher,
    Name,
    Nfe,
    NonNegative,
    Origin,
    Pairs,
    Plain,
    Positive,
    Schedule,
    Seed,
    Solver,
    Tolerance,
    key,
    one_of,
)
from s4spipe.pipeline.layout import DIGITS_IMAGES, DIGITS_WEIGHTS, FEATURES_WEIGHTS, NONE
from s4spipe.runtime.checks import MOST_NFE
from s4spipe.solvers import registry, timesteps
from s4spipe.solvers.timesteps import SEARCHED

GENOME, FRECHET = "genome", "frechet"  # a family and a distance that only learners without gradients have


class Run(Block):
    device: Origin = key("auto", "auto (CUDA if there is a GPU), cpu, cuda, cuda:1, mps")
    batch_size: Count = key(500, "samples per batch, when sampling")
    micro_batch_size: Count = key(200, "pairs in memory at a time, when learning; a minibatch may be larger")
    compile: bool = key(False, "torch.compile the network (GPU only)")
    launcher: Launcher | None = key(None, "starts several processes per stage, as in: torchrun --nproc-per-node 8 -m")


class Model(Block):
    name: Name = key("digits", "the folder in runs/ that holds all results")
    kind: Annotated[str, one_of("kind of model", KINDS)] = key(
        "digits", "digits, edm (EDM's checkpoints), diffusers (a pipeline's folder), callable (your own code)"
    )
    weights: File = key(DIGITS_WEIGHTS, "a file or a folder")
    condition: Literal["labels", "prompts", "none"] = key(
        "labels", "labels: class-conditional; prompts: text-to-image; none: unconditional"
    )
    guidance: NonNegative = key(1.0, "classifier-free guidance scale; 1 means none")
    precision: Annotated[str, one_of("precision", PRECISIONS)] = key(
        "float32", "precision of the network on a GPU: float32, float16, bfloat16"
    )
    source: Origin | None = key(None, "origin of the weights: an id on a model hub, a file, or module:function")
    revision: Origin | None = key(None, "commit of `source` on its hub")
    size: Count | None = key(None, "side in pixels, for pipelines that make images of several sizes")
    shape: list[Count] | None = key(None, "shape of a sample, if the network does not tell it")
    scheduler: Plain | None = key(None, "keys of a diffusers scheduler's config, for kind callable")
    pipeline: Plain | None = key(None, "arguments of a pipeline's call, such as {num_frames: 33}, for kind diffusers")


class TrainDigits(Block):
    steps: Count = key(5000)
    batch_size: Count = key(128)
    learning_rate: Positive = key(0.002)
    ema: Fraction = key(0.999)
    label_dropout: Fraction = key(0.1, "fraction of training images without a label: the model is unconditional too")
    seed: Seed = key(0)


class TrainFeatures(Block):
    epochs: Count = key(60)
    learning_rate: Positive = key(0.002)
    seed: Seed = key(0)


class Gits(Block):
    solver: Solver = key("ipndm_4")
    grid: Annotated[int, Field(ge=2, le=MOST_NFE)] = key(60, "EDM steps per trajectory")
    coefficient: Positive = key(1.05, "above 1, later errors count more; the paper uses 1.15")
    noises: Count = key(256)
    seed: Seed = key(0)


class Dmn(Block):
    schedule: Annotated[str, one_of("schedule", timesteps.FORMULAS)] = key("logsnr", "where the search starts")
    order: Annotated[int, Field(ge=1, le=4)] = key(3)
    up_to: Annotated[int, Field(ge=1, le=100)] = key(12, "largest number of steps")


class Statistics(Block):
    solver: Solver = key("unipc_bh2", "makes the samples")
    schedule: Annotated[str, one_of("schedule", timesteps.FORMULAS)] = key("logsnr")
    nfe: Nfe = key(20)
    samples: Pairs = key(256, "noised at every point of the grid")
    grid: Annotated[int, Field(ge=3, le=10_000)] = key(60, "points of lambda; the paper has 120 to 1200")
    seed: Seed = key(0)


class Teacher(Block):
    solver: AnySolver = key("unipc_bh2", "a classical solver, or rk45: adaptive, to a tolerance")
    schedule: Schedule = key("logsnr", "not read for rk45")
    nfe: Nfe = key(20, "for rk45 the most that a sample may take")
    tolerance: Tolerance = key(1e-5, "only rk45 reads it: the error that a step may make")
    train: Count = key(600, "pairs to learn from")
    validation: Count = key(600, "pairs that choose the best parameters")
    seed: Seed = key(0)


class Perceptual(Block):
    network: Annotated[str, one_of("perceptual network", FOR_DISTANCE)] = key("digits", ", ".join(FOR_DISTANCE))
    source: Origin = key("none", "module:function that returns the network, for callable")
    weights: File = key(FEATURES_WEIGHTS["perceptual"], "must not be the network that FID uses")


class Start(Block):
    solver: Solver = key("dpmpp_3m", "the classical solver")
    schedules: Annotated[list[Schedule], Field(min_length=1)] = key(
        ["vp_quadratic"], "of several, the one with the smallest loss on 64 pairs is taken"
    )
    skip: list[Annotated[float, Field(ge=0, lt=1)]] = key(
        [], "family free only: fractions of lambda's range, from the noisy end, that are crossed without the network"
    )


class Reward(Block):
    """What images shall have more of, in `refine.reward`."""

    network: Annotated[str, one_of("reward", REWARDS)]
    weights: File = NONE
    source: Origin = "none"
    weight: Positive = 1.0


class Learner(Block):
    family: Annotated[str, one_of("family", (*FAMILIES, GENOME))] = key(
        "lms",
        "lms, pc, ss, fixed, dss, gs, bns, epd, bezier, adasde, free; genome: decisions for each step, for `search`",
    )
    learns: Literal["coefficients", "times", "alternating", "joint"] = key(
        "alternating", "coefficients, times, alternating (times and coefficients in turn) or joint (both at once)"
    )
    order: Count = key(3, "history length k, for lms and pc")
    consistent: bool = key(False, "rows of coefficients keep their sum")
    shared: bool = key(False, "all steps share the same corrections")
    gaussian: bool = key(False, "coefficients start from N(0, 1)")
    bands: Bands = key(1, "bands of frequencies with weights of their own; auto: by the samples' power spectrum")
    channels: Literal["common", "own"] = key("common", "own: every component of the channels has its own bands")
    late: bool | None = key(None, "family free; false: c_0 stays 1, for pipelines without s4spipe.apply")
    mean: Literal["image", "channels", "none"] | None = key(
        None,
        "family free: its states may have some of the samples' mean image (this if left out), or of channels' means",
    )
    decoupling: Annotated[float, Field(ge=0, le=0.5)] = key(
        0.5, "how far a network time may be from its step, as a fraction of the smallest step"
    )
    distance: Annotated[str, one_of("distance", (*DISTANCES, FRECHET))] = key(
        "pseudo_huber", "l2, pseudo_huber, perceptual, perceptual_huber, mixed; frechet for search and evolution"
    )
    pairs: Count = key(600)
    validation_pairs: Count = key(300)
    batch_size: Count = key(20, "of pairs; for search and evolution, solvers or changes that a step tries")
    optimizer: Literal["adam", "gauss_newton", "search", "evolution"] = key(
        "adam", "adam or gauss_newton; without gradients search or evolution"
    )
    learning_rate: Positive = key(0.03, "Adam; for evolution, the size of the changes")
    radius: NonNegative = key(0.02, "Adam only: noises may move by radius * dim(x) * m^(-5/2) sigma_T, for m "
                              "coefficients; 0: they do not move")  # fmt: skip
    warmup_epochs: Epochs = key(2, "Adam only: epochs on the times alone, before alternating or joint epochs")
    alternations: Epochs = key(8, "Adam only: how often times and coefficients alternate")
    epochs: Epochs = key(1, "in all; if alternating, in each half of an alternation; for gauss_newton, steps at most; "
                         "for search, generations")  # fmt: skip
    seed: Seed = key(0)
    reward: Reward | None = key(None, "what images shall have more of, as in refine; not for gauss_newton")


class Refine(Block):
    pairs: Pairs = key(600)
    validation_pairs: Pairs = key(600)
    steps: Epochs = key(3, "at 6 evaluations and more; at fewer 6 / NFE times as many, which take the same time")
    seed: Seed = key(0)
    reward: Reward | None = key(None, "what images shall have more of: {network: classifier, weights: models/c}, say")


class Sample(Block):
    count: Count = key(10000)
    seed: Seed = key(0)


class Reference(Block):
    source: Literal["model", "real"] = key("model", "model, real")
    solver: AnySolver = key("unipc_bh2", "this and the next three as for the teacher")
    schedule: Schedule = key("vp_quadratic")
    nfe: Nfe = key(50)
    tolerance: Tolerance = key(1e-5)
    count: Count = key(20000)
    seed: Seed = key(0)


class Fid(Block):
    count: Count | Literal["all"] = key("all", "number of samples to use, or all")
    network: Annotated[str, one_of("features network", FOR_FID)] = key("digits", ", ".join(FOR_FID))
    source: Origin = key("none", "module:function that returns the network, for callable")
    mode: Annotated[str, one_of("mode of FID", MODES)] = key(
        "clean", "how images are resized for Inception: clean, legacy_tensorflow"
    )
    features: File = key(FEATURES_WEIGHTS["features"], "the network's file")
    real: File = key(DIGITS_IMAGES, f"real images: a folder, an .npy array of uint8, statistics as .npz; {NONE}: none")
    clip: File = key("none", "a CLIP model's folder or id, for the CLIP score of a text-to-image model; none: no score")


class Report(Block):
    sheet_columns: Annotated[int, Field(ge=1, le=20)] = key(10, "samples shown per solver")


USUAL = ("ddim", "dpmpp_2m", "dpmpp_3m", "ipndm", "unipc_bh1", "unipc_bh2")
ADAM_16 = {"learns": "joint", "radius": 0.0, "epochs": 16}
WIDE = Start(schedules=["time_quadratic", "edm", "logsnr", "vp_uniform", "vp_quadratic"], skip=[0.0, 0.1, 0.2, 0.3])
STARTS = {
    "s4s": Start(solver="ipndm", schedules=["edm"]),
    "s4s_alt": Start(solver="ipndm"),
    "free": WIDE, "free_bands": WIDE,
    "ld3": Start(), "dss": Start(solver="euler"), "gs": Start(), "bns": Start(),
    "s4s_pc": Start(solver="unipc_bh2", schedules=["edm"]),
    "s4s_ss": Start(solver="dpmpp_2s", schedules=["edm"]),
    "epd": Start(solver="parallel_midpoints"),
    "gn": Start(),
}  # fmt: skip
NEWTON = {"learns": "joint", "optimizer": "gauss_newton", "distance": "pseudo_huber", "radius": 0.0}
FREE = {"family": "free", **NEWTON, "validation_pairs": 200, "batch_size": 200, "epochs": 24}
LEARNERS: dict[str, dict[str, Any]] = {
    "s4s": {"learns": "coefficients", "validation_pairs": 200, "learning_rate": 0.02, "epochs": 10},
    "s4s_alt": {},
    "free": FREE,
    "free_bands": {**FREE, "bands": "auto"},
    "ld3": {"family": "fixed", "learns": "times", "epochs": 18},
    **{name: {"family": name, **ADAM_16} for name in ("dss", "gs", "bns")},
    "s4s_pc": {"family": "pc", "learns": "coefficients", "epochs": 18},
    "s4s_ss": {"family": "ss", "learns": "coefficients", "epochs": 18},
    "epd": {"family": "epd", "learns": "coefficients", "epochs": 18},
    "gn": {"family": "gs", **NEWTON, "batch_size": 256, "epochs": 18},
}  # fmt: skip


class Params(Block):
    """All of params.yaml."""

    nfe: Annotated[list[Nfe], Field(min_length=1)] = key(
        [5], "Network evaluations per sample. Solvers are learned and compared at each of these."
    )
    classical: Annotated[list[Classical], Field(min_length=1)] = key(
        list(USUAL),
        "The classical solvers to compare with; docs/reference/solvers.md lists them all. A name may end in an order "
        "(ipndm_4) and in _afs.",
    )
    classical_schedules: dict[Classical, Schedule] = key(
        dict.fromkeys(USUAL, "best"),
        "Their schedules: time_uniform, time_quadratic, edm, logsnr, vp_uniform, vp_quadratic; ays_sd15, ays_sdxl, "
        "ays_svd or karras_cut; gits or dmn, if `searched` below names it; a list of times; the name of a file in "
        "inputs/schedules; or best: the best of the first four for that solver and NFE on the embedded model. Every "
        "other key for a schedule takes the same, except best.",
    )
    run: Run = key(Run(), "Where and how to compute. No result depends on these, so no stage re-runs when they change.")
    model: Model = key(
        Model(), "The pre-trained model. docs/guide/models.md has an example of every kind; `s4spipe preset` switches "
        "to a published one.",
    )  # fmt: skip
    fetch: list[Argument] = key(
        [], "Files and folders to download or convert first. What is there already is left alone."
    )
    prompts: File = key(NONE, f"A file with one prompt per line, for a text-to-image model; {NONE}: none.")
    train_digits: TrainDigits = key(TrainDigits(), "Training of the embedded model.")
    train_features: TrainFeatures = key(TrainFeatures(), "Training of the network for the embedded model's FID.")
    train_perceptual: TrainFeatures = key(TrainFeatures(seed=1), "Training of another network, for `perceptual` below.")
    searched: list[Annotated[str, one_of("searched schedule", SEARCHED)]] = key(
        [], "Schedules to search for, at all numbers of steps: gits, dmn."
    )
    gits: Gits = key(
        Gits(), "GITS: the cheapest path on a fine grid along trajectories of `solver` (arXiv 2405.11326)."
    )
    dmn: Dmn = key(Dmn(), "DMN: the smallest bound on the error of a multistep solver (arXiv 2402.17376).")
    statistics_for: list[Annotated[str, one_of("solver with statistics", registry.STATISTICAL)]] = key(
        [], "Classical solvers for which statistics of the model are estimated: dpm_v3."
    )
    statistics: Statistics = key(
        Statistics(), "Those statistics, from samples of a many-step solver (docs/reference/solvers.md)."
    )
    teacher: Teacher = key(Teacher(), "The teacher, whose samples the learned solvers reproduce.")
    perceptual: Perceptual = key(
        Perceptual(), "The network used in learning, for the distance `perceptual` and for `refine`."
    )
    learned: list[str] = key(["s4s", "s4s_alt"], "The learned solvers: names of blocks in `learners`.")
    refined: list[str] = key(["free", "free_bands"], "Learned solvers that are also refined, as `refine` below says.")
    spanning: list[str] = key(
        [],
        "Learned solvers that are one fit, and one file, for all of `nfe`; they are refined too "
        "(docs/guide/spanning.md).",
    )
    starts: dict[Name, Start] = key(STARTS, "The classical solver that each learner starts from, exactly.")
    learner_defaults: Learner = key(Learner(), "How solvers are learned, unless a block of `learners` says otherwise.")
    learners: dict[Name, dict[str, Any]] = key(
        LEARNERS, "The learners: for each, what differs from `learner_defaults`."
    )
    refine: Refine = key(
        Refine(),
        "Refinement. It minimises the Fréchet distance between the solver's samples and the teacher's from the same "
        "noises, in features of the network `perceptual` with random ones beside.",
    )
    sample: Sample = key(Sample(), "The samples that are compared.")
    reference: Reference = key(
        Reference(),
        "What FID is measured against: the model's own distribution, sampled with so many steps that it is exact, or "
        "real images.",
    )
    fid: Fid = key(Fid(), "How samples are measured.")
    report: Report = key(Report(), "The report.")
