"""Runs a stage inside a forked process that can kill itself. It imports nothing slow: every fork starts from here."""

import importlib
import os
import signal
import sys
from pathlib import Path

COUNT = ".renames"  # where a finished stage leaves how many files it put in place


def run(project, module, *arguments, die_before=None):
    """Run `stages.<module>` in the folder `project`; die of SIGKILL just before rename number `die_before` (from 1)."""
    os.chdir(project)
    sys.stderr = open(os.devnull, "w")
    renames, replace = 0, os.replace

    def counted(source, target):
        nonlocal renames
        renames += 1
        if renames == die_before:
            os.kill(os.getpid(), signal.SIGKILL)
        replace(source, target)

    os.replace = counted
    importlib.import_module(f"stages.{module}").main(list(arguments), standalone_mode=False)
    Path(COUNT).write_text(str(renames))
