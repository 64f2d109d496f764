"""The server that forks processes for tests: it has imported what stages import, once for all of them.

There is one in a process of pytest, whoever asks for it, and of several lists of modules the last would count.
"""

import multiprocessing

STAGES = ("digits_images evaluate prompts real reference refine report sample schedules search tables teacher_pairs "
          "train_digits train_features learn")  # fmt: skip
FORK = multiprocessing.get_context("forkserver")
FORK.set_forkserver_preload(
    ["support.uncounted", *(f"stages.{name}" for name in STAGES.split()), "diffusers.models.unets.unet_2d",
     "diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion"]
)  # fmt: skip
