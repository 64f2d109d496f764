"""Try a built wheel outside the repository: python .ci/check_wheel.py dist/s4spipe-*.whl

It must hold every file of the package that git knows, require torch, numpy and safetensors alone, and work in a fresh
environment that has what it requires and no more. Nothing is downloaded for that: the environment gets the wheel by
pip, and links to those packages of the running one that the wheel's metadata leads to, with one extra at a time.
"""

import subprocess
import sys
import tempfile
import venv
import zipfile
from email.parser import HeaderParser
from importlib.metadata import distribution
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parent.parent
CORE = {"numpy", "safetensors", "torch"}

BASE = """
import importlib.util, torch
from s4spipe import Tableau, classical, models, noise, sample
from s4spipe.solvers import timesteps

for absent in ("click", "diffusers", "dvc", "pydantic", "scipy", "tqdm"):
    assert importlib.util.find_spec(absent) is None, f"{absent} should not be here"
schedule = noise.VE()
classical.build("ipndm", schedule, timesteps.build("edm", schedule, 5)).save("solver.json")
x_T = schedule.sigma_T * torch.randn(2, 1, 4, 4)
assert sample(lambda x, t, condition: x / (1 + t**2), Tableau.load("solver.json"), x_T).isfinite().all()
"""
SCHEDULER = """
import torch
from s4spipe.scheduler import S4SScheduler

scheduler = S4SScheduler.from_tableau("solver.json")
x = scheduler.init_noise_sigma * torch.randn(2, 1, 4, 4)
for t in scheduler.timesteps:
    x = scheduler.step(x / (1 + t**2), t, x).prev_sample
assert x.isfinite().all()
"""


def main(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        held = set(archive.namelist())
        (metadata,) = (name for name in held if name.endswith(".dist-info/METADATA"))
        requires = HeaderParser().parsestr(archive.read(metadata).decode()).get_all("Requires-Dist", [])
    requirements = [Requirement(line) for line in requires]
    known = subprocess.check_output(["git", "ls-files", "s4spipe"], cwd=ROOT, text=True).splitlines()
    missing = sorted(set(known) - held)
    assert not missing, f"not in the wheel: {', '.join(missing)}"
    core = {requirement.name for requirement in requirements if needed(requirement, {""})}
    assert core == CORE, f"the core requires {', '.join(sorted(core))}"
    with tempfile.TemporaryDirectory() as folder:
        base = Environment(Path(folder) / "base", wheel, requirements, "")
        base.python(BASE)
        base.refuses("-m", "s4spipe", "show", "solver.json", extra="pipeline")
        base.refuses("-c", "import s4spipe.scheduler", extra="diffusers")
        Environment(Path(folder) / "diffusers", wheel, requirements, "diffusers").python(SCHEDULER)
        full = Environment(Path(folder) / "pipeline", wheel, requirements, "pipeline")
        assert "cifar10" in full.run(full.bin / "s4spipe", "preset").stdout
        assert "ipndm" in full.run(full.bin / "s4spipe", "show", "solver.json").stdout
    print(f"{wheel.name}: {len(held)} files; works with {', '.join(sorted(CORE))} alone, and with its extras")


def needed(requirement: Requirement, extras: set[str]) -> bool:
    return requirement.marker is None or any(requirement.marker.evaluate({"extra": extra}) for extra in extras)


def closure(requirements: list[Requirement], extra: str) -> set[str]:
    """The names of all packages that the wheel needs with an extra."""
    wanted: dict[str, set[str]] = {}
    waiting = [("s4spipe", {"", extra})]
    while waiting:
        name, extras = waiting.pop()
        new = extras - wanted.setdefault(name, set())
        if not new:
            continue
        wanted[name] |= new
        of = requirements if name == "s4spipe" else [Requirement(line) for line in distribution(name).requires or []]
        waiting += [(canonicalize_name(r.name), {"", *r.extras}) for r in of if needed(r, new)]
    return set(wanted) - {"s4spipe"}


class Environment:
    """A fresh one beside the others, with the wheel and what it needs; its commands run in the folder of them all."""

    def __init__(self, folder: Path, wheel: Path, requirements: list[Requirement], extra: str):
        venv.create(folder, symlinks=True)
        self.place, self.bin = folder.parent, folder / "bin"
        (packages,) = (folder / "lib").glob("python*/site-packages")
        for name in closure(requirements, extra):
            package = distribution(name)
            for top in {file.parts[0] for file in package.files or []} - {"..", "__pycache__"}:
                if not (packages / top).is_symlink():
                    (packages / top).symlink_to(package.locate_file(top))
        install = [sys.executable, "-m", "pip", "--python", self.bin / "python", "install", "-q", "--no-deps"]
        subprocess.run([*install, wheel], check=True)

    def run(self, *command, ok: bool = True) -> subprocess.CompletedProcess:
        done = subprocess.run(command, cwd=self.place, env={}, capture_output=True, text=True, check=False)
        assert (done.returncode == 0) is ok, f"{command}: {done.stdout}{done.stderr}"
        return done

    def python(self, program: str) -> None:
        self.run(self.bin / "python", "-c", program)

    def refuses(self, *arguments, extra: str) -> None:
        """A command that needs an extra names it, in its last line."""
        said = self.run(self.bin / "python", *arguments, ok=False).stderr
        assert f"s4spipe[{extra}]" in said.splitlines()[-1], said
        assert "-c" in arguments or "Traceback" not in said, said


if __name__ == "__main__":
    main(Path(sys.argv[1]).resolve())
