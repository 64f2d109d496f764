"""Runs of other revisions: experiments, branches, tags, commits."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

from dvc.api import DVCFileSystem
from dvc.exceptions import DvcException
from dvc.scm import SCMError

from s4spipe.errors import UserError
from s4spipe.files import write_text
from s4spipe.report import page
from s4spipe.report.run import Run


def compare(one: str, other: str, path: Path) -> None:
    """Write the page on which two revisions stand side by side. Raises UserError if one is not there or has no run."""
    with ExitStack() as stack:
        runs = {name: stack.enter_context(at(name)) for name in (one, other)}
        if len(runs) < 2:
            raise UserError(f"{one}: name another run to compare it with")
        write_text(path, page.comparison(runs))


@contextmanager
def at(revision: str) -> Iterator[Run]:
    """The run of an experiment, branch, tag or commit, or of the `workspace`."""
    if revision == "workspace":
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
        try:
            if "params.yaml" in there:
                tree.get("params.yaml", f"{folder}/params.yaml")
            run = Run.at(folder)
            for name in ("evaluations", run.params.model.solvers):
                if tree.isdir(name):
                    tree.get(name, f"{folder}/{name}", recursive=True)
            yield run
        except UserError as error:
            raise UserError(str(error).replace(f"{folder}/", f"{revision}: ")) from None
