"""A `python` that starts quickly: `python -m ...` is forked from a process that has imported the large libraries; and
an `s4spipe` that is this python's.

A stage spends seconds on importing torch, and a tiny pipeline has dozens of stages. None of the project's own modules
is imported beforehand: a stage runs the code of the folder that it is started in, as with any other python.
"""

import atexit
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path

LARGE = ["torch", "diffusers", "diffusers.models.unets.unet_2d", "cleanfid.fid", "pydantic", "ruamel.yaml", "click"]
LARGE += ["matplotlib.pyplot", "PIL.Image", "sklearn.datasets", "torch.utils.checkpoint", "safetensors.torch", "tqdm"]

CLIENT = f"""#!{sys.executable} -SE
import json, os, socket, sys
if sys.argv[1:2] != ["-m"]:
    os.execv({sys.executable!r}, [{sys.executable!r}, *sys.argv[1:]])
line = socket.socket(socket.AF_UNIX)
line.connect(os.path.join(os.path.dirname(os.path.realpath(__file__)), "socket"))
asked = json.dumps([sys.argv[2:], os.getcwd(), dict(os.environ)]).encode()
socket.send_fds(line, [len(asked).to_bytes(4, "big")], [0, 1, 2])
line.sendall(asked)
sys.exit(line.recv(1)[0])
"""


@lru_cache
def folder() -> str:
    """The folder of a quick `python` and its `s4spipe`, for PATH; their server ends with this process."""
    made = tempfile.mkdtemp()
    for name, script in {"python": CLIENT, "s4spipe": f'#!/bin/sh\nexec {made}/python -m s4spipe "$@"\n'}.items():
        path = Path(made, name)
        path.write_text(script, encoding="utf-8")
        path.chmod(0o755)
    server = subprocess.Popen([sys.executable, __file__, made], stdout=subprocess.PIPE)
    assert server.stdout is not None
    server.stdout.readline()
    atexit.register(server.terminate)
    return made


def uncounted(environment: Mapping[str, str]) -> dict[str, str]:
    """The environment without what makes coverage count a process."""
    return {key: value for key, value in environment.items() if not key.startswith("COVERAGE_")}


def serve(folder):
    import importlib

    for name in LARGE:
        importlib.import_module(name)
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    door = socket.socket(socket.AF_UNIX)
    door.bind(os.path.join(folder, "socket"))
    door.listen(16)
    door.settimeout(1)
    print("ready", flush=True)
    parent = os.getppid()
    while os.getppid() == parent:
        try:
            line, _ = door.accept()
        except TimeoutError:
            continue
        if os.fork() == 0:
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            door.close()
            line.setblocking(True)
            os._exit(attend(line))
        line.close()


def attend(line):
    size, streams, _, _ = socket.recv_fds(line, 4, 3)
    size, asked = int.from_bytes(size, "big"), b""
    while len(asked) < size:
        asked += line.recv(size - len(asked))
    stage = os.fork()
    if stage == 0:
        line.close()
        run(streams, *json.loads(asked))
    status = os.waitstatus_to_exitcode(os.waitpid(stage, 0)[1])
    line.sendall(bytes([status if status >= 0 else 128 - status]))
    return 0


def run(streams, arguments, place, environment):
    import runpy
    import traceback

    for number, stream in enumerate(streams):
        os.dup2(stream, number)
    os.chdir(place)
    os.environ.clear()
    os.environ.update(environment)
    sys.argv = list(arguments)
    sys.path[0] = place
    code = 0
    try:
        runpy.run_module(arguments[0], run_name="__main__", alter_sys=True)
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else int(end.code is not None)
    except BaseException:
        traceback.print_exc()
        code = 1
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


if __name__ == "__main__":
    serve(sys.argv[1])
