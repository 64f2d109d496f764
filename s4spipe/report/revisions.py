"""Runs of other revisions: experiments, branches, tags, commits."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from s4spipe.pipeline import layout
from s4spipe.report import page
from s4spipe.report.run import Run
from s4spipe.runtime.errors import UserError, needs
from s4spipe.runtime.files import write_text

with needs("pipeline", "comparing revisions"):
    from dvc.exceptions import DvcException
    from dvc.repo import Repo
    from dvc.scm import NoSCM, resolve_rev
    from scmrepo.exceptions import SCMError

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
    tree, here = _tree(revision)
    with TemporaryDirectory() as folder:
        root = Path(folder)
        try:
            if tree.exists(f"{here}/{layout.PARAMS}"):
                tree.get(f"{here}/{layout.PARAMS}", str(root / layout.PARAMS))
            _get(tree, here, Path(layout.INPUT_SCHEDULES), root)  # whose names params.yaml may mention
            run = Run.at(root)
            for path in run.places.measured:
                _get(tree, here, path.relative_to(root), root)
            yield run
        except UserError as error:
            raise UserError(str(error).replace(f"{folder}/", f"{revision}: ")) from None


def _tree(revision: str) -> tuple[Any, str]:
    """The files of a revision, and the project's place among them: it may lie in a subfolder of its git repository."""
    try:
        repo = Repo()
    except (DvcException, SCMError):
        raise UserError("the project is in no repository of git and DVC, or in a broken one, so it has no revisions to "
                        "compare; `git status` and `dvc status` say why") from None  # fmt: skip
    with repo:
        if isinstance(repo.scm, NoSCM):
            raise UserError("the project is in no git repository, so it has no revisions to compare")
        commit = _commit(repo.scm, revision)
        if not commit and not _commit(repo.scm, "HEAD"):
            raise UserError(f"{revision}: git finds no commit of this project; `git status` and `git log` say why")
        if not commit:
            raise UserError(f"{revision or repr(revision)}: no such experiment, branch, tag or commit; `dvc exp list` "
                            "and `git branch` name them")  # fmt: skip
        top, tree = repo.scm.root_dir, repo.scm.get_fs(commit)
    here = Path.cwd().resolve().relative_to(Path(top).resolve())
    return tree, "" if here == Path() else f"/{here.as_posix()}"


def _commit(scm: Any, revision: str) -> str | None:
    """The id of a revision's commit; None if there is none, or if it is another of git's objects."""
    try:
        return resolve_rev(scm, f"{resolve_rev(scm, revision)}^{{commit}}") if revision else None
    except (DvcException, SCMError):
        return None


def _get(tree: Any, here: str, path: Path, root: Path) -> None:
    """Copy a folder of a revision, if it exists, to its place in `root`."""
    there = f"{here}/{path.as_posix()}"
    if tree.isdir(there):
        tree.get(there, str(root / path), recursive=True)
