"""A solver out of another DVC project."""

import json
from pathlib import PurePosixPath

from s4spipe.runtime.errors import UserError
from s4spipe.sampling.tableau import Tableau, arrays, one_of


def read(path: str, repo: str, rev: str | None, nfe: int | None = None) -> Tableau:
    """The solver in the file `path` of a DVC project, as `dvc get` would fetch it.

    Args:
        path: the file in the project.
        repo: the project's git repository (URL or path).
        rev: its commit or tag; None for the newest.
        nfe: as for `Tableau.load`.

    Raises:
        UserError: if there is no such file, or it is no solver.
    """

    def bytes_of(file: str) -> bytes:
        from dvc import api
        from dvc.exceptions import DvcException

        try:
            return api.read(file, repo=repo, rev=rev, mode="rb")
        except (DvcException, OSError, ValueError) as error:
            reason = str(error).strip().splitlines() or [type(error).__name__]
            raise UserError(
                f"{repo}: no {file} can be read from that project{f' at {rev}' if rev else ''} ({reason[0]})"
            ) from None

    try:
        data, weights = json.loads(bytes_of(path)), None
    except ValueError as error:
        raise UserError(f"{path} of {repo}: not valid JSON ({error})") from None
    try:
        if isinstance(data, dict) and "arrays" in data:
            entry = data.pop("arrays")
            file = str(PurePosixPath(path).with_name(arrays.name(entry)))
            weights = arrays.decoded(bytes_of(file), entry, file)
        return one_of(data, weights, nfe)
    except UserError as error:
        raise UserError(f"{path} of {repo}: {error}") from None
