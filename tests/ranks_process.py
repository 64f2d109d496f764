"""Work for several processes, each of which leaves what it got in a file."""

import os
from pathlib import Path

import torch


def run(work, rank, world, folder):
    """`work` of the functions below as process `rank` of `world`, in `folder`, through which they meet."""
    os.chdir(folder)
    os.environ |= {"S4SPIPE_LAUNCHED_BY": "test", "RANK": str(rank), "WORLD_SIZE": str(world)}
    torch.set_num_threads(1)
    from s4spipe import ranks

    ranks.join()
    torch.save(globals()[work](), f"{work}-{rank}.pt")
    ranks.leave()


def solving():
    from s4spipe import classical, models, steps
    from s4spipe.files import Scratch
    from s4spipe.pairs import solve

    denoiser = models.load({"weights": str(Path(__file__).parent.parent / "models/digits.safetensors")})
    table = classical.build("ipndm", denoiser.noise_schedule, steps.build("edm", denoiser.noise_schedule, 4))
    shards = solve(denoiser, table, "sample", 0, 50, 8, torch.device("cpu"), Scratch("solving"))
    return [shard["x_0"] for shard in shards]


def fitting(by_newton=False, by_frechet=False):
    import problems

    from s4spipe import classical, distance, steps
    from s4spipe.distill import fit
    from s4spipe.families import LMS, Times
    from s4spipe.files import Scratch
    from s4spipe.noise import VE
    from s4spipe.pairs import Pairs
    from s4spipe.sampling import sample

    noise = VE(0.01, 20.0)
    problem = problems.Gaussian(noise)

    def denoiser(x, t, condition=None):
        return torch.tanh(2 * problem(x, t))

    def pairs(n, seed):
        x_T = problems.noises(n, scale=noise.sigma_T, seed=seed)
        teacher = classical.build("dpmpp_2m", noise, steps.build("logsnr", noise, 60))
        return Pairs(x_T, sample(denoiser, teacher, x_T), None)

    t = steps.build("logsnr", noise, 4)
    student = LMS("ipndm", noise, t, 3, Times(noise, t))
    if by_newton:
        from s4spipe.distill import gauss_newton

        history = gauss_newton.fit(
            student, ("times", "coefficients"), denoiser, pairs(22, 1), pairs(2, 2), distance.l2, batch_size=7,
            at_once=20, steps=3, seed=0, scratch=Scratch("newton"),
        )  # fmt: skip
        return {"history": history, "parameters": {name: p.detach() for name, p in student.named_parameters()}}
    if by_frechet:
        from s4spipe.distill import frechet

        history = frechet.refine(student, denoiser, pairs(22, 1), pairs(11, 2), lambda x: x.float(), at_once=4, steps=2,
                                 seed=0, scratch=Scratch("refining"))  # fmt: skip
        return {"history": history, "parameters": {name: p.detach() for name, p in student.named_parameters()}}
    history = fit.fit(
        student, fit.s4s_alt(2, 1, 1, joint=False), denoiser, pairs(22, 1), pairs(11, 2), distance.l2,
        batch_size=7, at_once=2, learning_rate=0.02, radius=0.5, seed=0, scratch=Scratch("fitting"),
    )  # fmt: skip
    return {"history": history, "parameters": {name: p.detach() for name, p in student.named_parameters()}}


def newton():
    return fitting(by_newton=True)


def refining():
    return fitting(by_frechet=True)


def seeing():
    import numpy as np

    from s4spipe import features, fid

    cpu = torch.device("cpu")
    net = features.load("digits", str(Path(__file__).parent.parent / "models/features.safetensors"), cpu)
    images = np.random.default_rng(0).integers(0, 256, (1100, 1, 8, 8), dtype=np.uint8)
    return {
        "array": torch.from_numpy(fid.features(images, net, cpu)),
        "small": torch.from_numpy(fid.features(images[:3], net, cpu)),
    }


def failing():
    from s4spipe import ranks

    if ranks.rank() == 1:
        os._exit(3)
    ranks.wait()
