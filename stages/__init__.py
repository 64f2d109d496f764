"""The scripts of the pipeline's stages. dvc.yaml runs them from the project's folder, as `python -m stages.NAME`."""

import os
import sys
from importlib.machinery import PathFinder

OWN = ("benchmarks", "s4spipe", "stages", "test", "tests")  # no library imports these, whoever else has such a name


def hiding(project: str) -> str | None:
    """A file or folder of the project that Python would import in the place of a library of that name, if there is one.

    `python -m` looks into the project's folder first.
    """
    elsewhere = [path for path in sys.path if os.path.realpath(path) != project]
    for entry in sorted(os.listdir(project)):
        name, ending = os.path.splitext(entry)
        is_module = ending == ".py" or os.path.exists(os.path.join(project, entry, "__init__.py"))
        if is_module and name not in OWN and PathFinder.find_spec(name, elsewhere):
            return entry
    return None


# At once, before any library is imported.
if found := hiding(os.path.dirname(os.path.dirname(os.path.realpath(__file__)))):
    sys.exit(f"Error: {found}: Python would import it instead of the library of the same name; rename it")
