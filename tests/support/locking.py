"""Processes that want the same lock."""

import os
import time
from pathlib import Path

from s4spipe.runtime.scratch import alone


def count(folder, times):
    """Add one to the number in the file `number`, some times, and note who was waited for."""
    os.chdir(folder)
    number, waits = Path("number"), []
    for _ in range(times):
        with alone("count", waits.append):
            before = int(number.read_text(encoding="utf-8")) if number.exists() else 0
            number.write_text(str(before + 1), encoding="utf-8")
    Path(f"waits-{os.getpid()}").write_text("\n".join(waits), encoding="utf-8")


def hold(folder):
    os.chdir(folder)
    with alone("count", print):
        Path("held").touch()
        time.sleep(60)
