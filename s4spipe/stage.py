"""What every stage of the pipeline shares: checked parameters in, one sentence and a non-zero exit on a mistake."""

import os
import sys
import threading
import time
from collections.abc import Callable
from functools import wraps

import click

from s4spipe import params, ranks
from s4spipe.errors import UserError


def command(stage: Callable) -> click.Command:
    """A click command out of `stage(params, ...)`; its `params` are those of ./params.yaml."""

    @wraps(stage)
    def run(**arguments):
        _follow_parent()
        try:
            stage(params.load(), **arguments)
        except UserError as error:
            who = "Error" if ranks.first() else f"Error (process {ranks.rank()})"
            click.echo(f"{who}: {error}", err=True)
            sys.exit(1)

    return click.command()(run)


def divided(stage: Callable) -> click.Command:
    """As `command`, for a stage whose work several processes can share: with `run.launcher`, they run it."""

    @wraps(stage)
    def run(params, **arguments):
        if params.run.launcher and not ranks.launched():
            ranks.launch(params.run.launcher, sys.modules["__main__"].__spec__.name, sys.argv[1:])
            return
        ranks.join()
        stage(params, **arguments)
        ranks.leave()

    return command(run)


def _follow_parent() -> None:
    """End this process when the one that started it is gone: a killed `dvc repro` must not leave a GPU busy."""
    parent = os.getppid()

    def watch():
        while os.getppid() == parent and not ranks.starter_is_gone():
            time.sleep(1)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
