"""What every stage of the pipeline shares: checked parameters in, one sentence and a non-zero exit on a mistake."""

import os
import sys
import threading
import time
from collections.abc import Callable
from functools import wraps

import click

from s4spipe import params
from s4spipe.errors import UserError


def command(stage: Callable) -> click.Command:
    """A click command out of `stage(params, ...)`; its `params` are those of ./params.yaml."""

    @wraps(stage)
    def run(**arguments):
        _follow_parent()
        try:
            stage(params.load(), **arguments)
        except UserError as error:
            click.echo(f"Error: {error}", err=True)
            sys.exit(1)

    return click.command()(run)


def _follow_parent() -> None:
    """End this process when the one that started it is gone: a killed `dvc repro` must not leave a GPU busy."""
    parent = os.getppid()

    def watch():
        while os.getppid() == parent:
            time.sleep(1)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
