"""The server that forks processes for tests: it has imported what stages import, once for all of them.

There is one in a process of pytest, whoever asks for it, and of several lists of modules the last would count.
"""

import multiprocessing
from pathlib import Path

STAGES = sorted(path.stem for path in (Path(__file__).parent.parent.parent / "stages").glob("[a-z]*.py"))
FORK = multiprocessing.get_context("forkserver")
FORK.set_forkserver_preload(
    ["support.uncounted", *(f"stages.{name}" for name in STAGES), "diffusers.models.unets.unet_2d",
     "diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion"]
)  # fmt: skip
