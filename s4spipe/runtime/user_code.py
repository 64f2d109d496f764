"""The user's own code: a function, named as module:function, that returns a network."""

import inspect
import os
import sys
import sysconfig
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib import import_module
from importlib.machinery import PathFinder
from pathlib import Path

from torch import nn

from s4spipe.runtime.errors import UserError, shown

LIBRARIES = tuple({sysconfig.get_path(kind) for kind in ("stdlib", "platstdlib", "purelib", "platlib")})
PACKAGE = str(Path(__file__).parents[1])


def network(key: str, source: str, weights: str) -> nn.Module:
    """The network that the function `source` ("module:function") returns; it gets `weights` if it takes an argument.

    Args:
        key: the key of params.yaml that holds `source`, for messages.
        source: the function; its module is looked for from the project's root.
        weights: the path of the network's weights.

    Raises UserError, naming the key, if there is no such function, or it raises or returns something else.
    """
    function = _function(key, source)
    with told(key, source, "fails"):
        net = _call(function, weights)
    if not isinstance(net, nn.Module):
        raise UserError(f"{key}: {source} must return a torch.nn.Module, got {type(net).__name__}")
    return net


def _function(key: str, source: str) -> Callable:
    module, _, name = source.partition(":")
    if not (all(module.split(".")) and name):
        raise UserError(f"{key}: must be module:function, got {shown(source)}")
    root = str(Path.cwd())
    if sys.path[0] != root:  # the project's root goes first, as for `python -m`
        sys.path[:] = [root, *(place for place in sys.path if place != root)]
    with told(key, source, "cannot be imported"):
        try:
            found = import_module(module)
        except ModuleNotFoundError as error:
            if not f"{module}.".startswith(f"{error.name}."):
                raise
            raise UserError(f"{key}: no module {module!r} can be imported from the project's root") from None
        _check_place(key, module)
        function = getattr(found, name, None)
    if function is None:
        raise UserError(f"{key}: module {module!r} has no function {name!r}")
    if not callable(function):
        raise UserError(f"{key}: {source} must be a function, got {type(function).__name__}")
    return function


def _check_place(key: str, module: str) -> None:
    """Raises UserError if Python has kept another project's module of the same name, or of the name of a parent."""
    path, parts = None, module.split(".")
    for i in range(len(parts)):
        name = ".".join(parts[: i + 1])
        spec, kept = PathFinder.find_spec(name, path), sys.modules.get(name)
        there, here = getattr(kept, "__file__", None), spec and spec.has_location and spec.origin
        if there and here and os.path.realpath(there) != os.path.realpath(here):
            raise UserError(
                f"{key}: Python has kept the module {name!r} of {there}, and {here} has the same name: start "
                "Python anew for each project, or name them differently"
            )
        path = getattr(kept, "__path__", None)
        if path is None:
            return  # no package


@contextmanager
def told(key: str, source: str, what: str) -> Iterator[None]:
    """Turns what the user's own code raises into UserError with its place: even an end of the program, which would be
    silent."""
    try:
        yield
    except UserError:
        raise
    except (Exception, SystemExit) as error:
        reason = ": ".join([type(error).__name__, *str(error).strip().splitlines()[:1]])[:200]
        raise UserError(f"{key}: {source} {what}: {reason}{_place(error)}") from None


def _place(error: BaseException) -> str:
    """The end of a message: the line of the user's code, the last outside of Python's own and installed packages."""
    frames = traceback.extract_tb(error.__traceback__)
    own = [frame for frame in frames if not frame.filename.startswith((PACKAGE, "<", *LIBRARIES))]
    return "".join(f" ({frame.filename}:{frame.lineno})" for frame in own[-1:])


def _call(function: Callable, weights: str) -> object:
    takes = any(p.default is p.empty and p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)
                for p in inspect.signature(function).parameters.values())  # fmt: skip
    return function(weights) if takes else function()
