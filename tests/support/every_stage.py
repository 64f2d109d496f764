"""Every stage at a tiny size, for the tests that run each of them in a forked process."""

# Its module and arguments, its outs, and what makes it short.
RUN = "runs/digits"
FREE = {"family": "free", "learns": "joint", "optimizer": "gauss_newton", "radius": 0.0, "epochs": 2}
SPANNING = {"nfe": [3, 4], "spanning": ["one"], "learners": {"one": FREE},
            "starts": {"one": {"solver": "dpmpp_3m", "schedules": ["edm", "logsnr"], "skip": [0.0, 0.1]}}}  # fmt: skip
STAGES = {
    "train_digits": (["train_digits"], ["models/digits.safetensors"],
                     {"train_digits": {"steps": 8, "batch_size": 8}}),
    "train_features": (["train_features", "features"], ["models/features.safetensors"],
                       {"train_features": {"epochs": 3}}),
    "train_perceptual": (["train_features", "perceptual"], ["models/perceptual.safetensors"],
                         {"train_perceptual": {"epochs": 3}}),
    "digits_images": (["digits_images"], ["data/digits.npy"], {}),
    "prompts": (["prompts"], [f"{RUN}/prompts.safetensors"], {}),
    "real": (["real"], [f"{RUN}/real.safetensors"], {}),
    "reference": (["reference"], [f"{RUN}/reference.safetensors"], {"reference": {"count": 70}}),
    "schedules": (["schedules"], [f"{RUN}/schedules/inputs.json"], {}),
    "tables": (["tables"], [f"{RUN}/tables/ddim-3.json", f"{RUN}/tables/teacher-6.json", f"{RUN}/starts/free-3.json"],
               {}),
    "search": (["search", "gits"], [f"{RUN}/schedules/gits.json"], {"gits": {"grid": 6, "noises": 40}}),
    "statistics": (["statistics", "dpm_v3"], [f"{RUN}/schedules/statistics.safetensors"],
                   {"statistics": {"samples": 6, "grid": 3, "nfe": 2}}),
    "teacher_pairs": (["teacher_pairs"], [f"{RUN}/pairs/train.safetensors", f"{RUN}/pairs/validation.safetensors"], {}),
    "learn": (["learn", "solvers", "s4s", "3"], [f"{RUN}/solvers/s4s-3/{name}.json" for name in ("solver", "history")],
              {"learners": {"s4s": {"epochs": 2}}}),
    "learn alternating": (["learn", "solvers", "s4s_alt", "3"], [f"{RUN}/solvers/s4s_alt-3/solver.json"], {}),
    "fit": (["learn", "fits", "free", "3"], [f"{RUN}/fits/free-3/{name}.json" for name in ("solver", "history")],
            {"learners": {"free": {"bands": 2}}}),
    "span": (["span", "one"], [f"{RUN}/fits/one/{name}.json" for name in ("solvers", "history")], SPANNING),
    "refine": (["refine", "free", "3"], [f"{RUN}/solvers/free-3/{name}.json" for name in ("solver", "history")], {}),
    "sample": (["sample", "tables", "ddim", "3"],
               [f"{RUN}/samples/ddim-3/{name}" for name in ("images.npy", "states.safetensors", "about.json")], {}),
    "evaluate": (["evaluate", "s4s", "3"],
                 [f"{RUN}/evaluations/s4s-3/{name}" for name in ("metrics.json", "trajectories.json", "samples.png")],
                 {}),
    "report": (["report"], [
        *(f"{RUN}/report/{name}" for name in ("metrics.json", "fid.csv", "fid.json", "table.md", "report.html")),
        *(f"{RUN}/report/figures/{name}.png" for name in ("fid", "loss-3", "samples-3", "coefficients-3")),
    ], {}),
}  # fmt: skip
# Those that several processes can share.
DIVIDED = ("real", "reference", "search", "statistics", "teacher_pairs", "learn", "learn alternating", "fit", "span",
           "refine",           "sample", "evaluate")  # fmt: skip
