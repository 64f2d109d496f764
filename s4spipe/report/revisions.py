"""Runs of other revisions: experiments, branches, tags, commits."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

from s4spipe.pipeline import layout
from s4spipe.report import page
from s4spipe.report.run import Run
from s4spipe.runtime.errors import UserError, needs
from s4spipe.runtime.files import write_text

with needs("pipeline", "comparing revisions"):
    from dvc.api import DVCFileSystem
    from dvc.exceptions import DvcException
    from dvc.scm import SCMError

WORKSPACE = "workspace"


def compare(one: str, other: str, path: Path) -> None:
    """Write a page that compares two revisions.

    Raises UserError if they are the same, or one of them does not exist or has no finished run.
    """
    if one == other:
        raise UserError(f"{one}: name another run to compare it with")
    with ExitStack() as stack:
        runs = {name: stack.enter_context(at(name)) for name in (one, other)}
        write_text(path, page.comparison(runs))


@contextmanager
def at(revision: str) -> Iterator[Run]:
    """The run of an experiment, branch, tag or commit, or of the `workspace`, while the block lasts."""
    if revision == WORKSPACE:
        yield Run.at(".")
        return
    try:
        tree = DVCFileSystem(rev=revision)
        there = tree.ls("", detail=False)
    except (DvcException, SCMError):
        raise UserError(
            f"{revision}: no such experiment, branch, tag or commit; `dvc exp list` and `git branch` name them"
        ) from None
    with TemporaryDirectory() as folder:
        root = Path(folder)
        try:
            if layout.PARAMS in there:
                tree.get(layout.PARAMS, str(root / layout.PARAMS))
            _get(tree, Path(layout.INPUT_SCHEDULES), root)  # whose names params.yaml may mention
            run = Run.at(root)
            for path in run.places.measured:
                _get(tree, path.relative_to(root), root)
            yield run
        except UserError as error:
            raise UserError(str(error).replace(f"{folder}/", f"{revision}: ")) from None


def _get(tree: DVCFileSystem, path: Path, root: Path) -> None:
    """Copy a folder of a revision, if it exists, to its place in `root`."""
    if tree.isdir(path.as_posix()):
        tree.get(path.as_posix(), str(root / path), recursive=True)
