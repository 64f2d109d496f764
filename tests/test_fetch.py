"""Files that are fetched: what is said, what is done, and what is told when it cannot be done."""

import errno
import http.server
import json
import os
import subprocess
import sys
import threading
import urllib.error
from pathlib import Path

import pytest
import torch
from support import pipes
from support.pipeline import ROOT, edit

from s4spipe import models
from s4spipe.pipeline import fetch, params
from s4spipe.pipeline.layout import DOWNLOADS
from s4spipe.pipeline.schema import USUAL
from s4spipe.runtime.errors import UserError


@pytest.fixture
def project(tmp_path, monkeypatch):
    (tmp_path / "params.yaml").write_text((ROOT / "params.yaml").read_text())
    monkeypatch.chdir(tmp_path)
    return tmp_path


def edited(project, **blocks):
    edit(project, classical_schedules=dict.fromkeys(USUAL, "logsnr"), **blocks)
    return params.load("params.yaml")


def test_where_files_are_from_is_known_by_their_names():
    known = {
        "models/inception-2015-12-05.pt": "metrics/inception-2015-12-05.pt",
        "vgg16-397923af.pth": "https://download.pytorch.org/models/vgg16-397923af.pth",
        "models/ffhq-64x64.npz": "https://nvlabs-fi-cdn.nvidia.com/edm/fid-refs/ffhq-64x64.npz",
        "x/cifar10_clean_train_32.npz": "https://www.cs.cmu.edu/~clean-fid/stats/cifar10_clean_train_32.npz",
        "m/VIRTUAL_lsun_bedroom256.npz": "ref_batches/lsun/bedroom/VIRTUAL_lsun_bedroom256.npz",
    }
    for path, url in known.items():
        assert fetch.address(path).endswith(url)
    with pytest.raises(UserError, match="the origin of models/mine.npz is unknown; put it there yourself"):
        fetch.address("models/mine.npz")


def test_a_file_of_any_name_that_is_there_needs_no_address(project):
    Path("mine.npz").write_text("mine")
    plan = fetch.plan("mine.npz", params.load("params.yaml"))
    plan.run()
    assert plan.sentence == "mine.npz: is there already"
    assert Path("mine.npz").read_text() == "mine"


def test_statistics_of_clean_fid_are_where_its_package_looks(monkeypatch):
    from cleanfid import features

    asked = []
    monkeypatch.setattr(features, "check_download_url", lambda local_folder, url: asked.append(url) or "none")
    with pytest.raises(FileNotFoundError):
        features.get_reference_statistics("cifar10", 32, mode="legacy_tensorflow", split="train")
    assert asked[0].replace("//cifar", "/cifar") == fetch.address("cifar10_legacy_tensorflow_train_32.npz")


def test_what_is_there_is_left_and_what_is_not_is_told_when_offline(project, monkeypatch):
    plan = fetch.plan("models/inception-2015-12-05.pt", params.load("params.yaml"))
    assert plan.sentence.startswith("models/inception-2015-12-05.pt: downloads https://")

    def offline(*_, **__):
        raise urllib.error.URLError("no route")

    monkeypatch.setattr(fetch, "urlopen", offline)
    with pytest.raises(
        UserError, match=r"inception-2015-12-05.pt: could not be downloaded from https://.*no route.*; put that"
    ):
        plan.run()
    assert not Path("models/inception-2015-12-05.pt").exists()
    Path("models").mkdir(exist_ok=True)
    Path("models/inception-2015-12-05.pt").write_text("mine")
    plan.run()
    assert Path("models/inception-2015-12-05.pt").read_text() == "mine"


def test_an_edm_pickle_is_converted(project, monkeypatch):
    from s4spipe.models import edm

    path = "models/edm-x.safetensors"
    found = edited(project, model={"kind": "edm", "weights": path, "condition": "none"}, fetch=[path])
    converted = []
    monkeypatch.setattr(edm, "convert", lambda source, to: converted.append((source, to)))
    monkeypatch.setattr(fetch, "download", lambda to, url: None)
    plan = fetch.plan(path, found)
    assert plan.sentence == (
        f"{path}: converts edm-x.pkl, from https://nvlabs-fi-cdn.nvidia.com/edm/pretrained/edm-x.pkl"
    )
    plan.run()
    assert converted == [(f"{DOWNLOADS}/edm-x.pkl", path)]
    local = edited(project, model={"kind": "edm", "weights": path, "source": "mine.pkl"})
    Path("mine.pkl").write_text("")
    assert fetch.plan(path, local).sentence == f"{path}: converts mine.pkl"
    fetch.plan(path, local).run()
    assert converted[-1] == ("mine.pkl", path)


WHOLE = bytes(range(256)) * 1000
BINARY = "application/octet-stream"
ANSWERS = {"whole": (WHOLE, BINARY), "cut": (WHOLE, BINARY), "login": (b"Log in, please", "text/html; charset=utf-8"),
           "page": (b"\n<!DOCTYPE html><title>404</title>", BINARY)}  # fmt: skip


class Source(http.server.BaseHTTPRequestHandler):
    """A server of files."""

    def do_GET(self):
        content, kind = ANSWERS[self.path[1:]]
        self.send_response(200)
        self.send_header("Content-Length", str(len(content) * (2 if self.path == "/cut" else 1)))
        self.send_header("Content-Type", kind)
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *_):
        pass


@pytest.fixture
def source(monkeypatch):
    monkeypatch.setenv("no_proxy", "*")
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Source) as server:
        threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


@pytest.mark.parametrize(("name", "says"), {
    "cut": "256,000 of 512,000 bytes have arrived", "login": "a web page", "page": "a web page",
}.items())  # fmt: skip
def test_half_a_file_and_a_web_page_are_told_and_not_kept(name, says, source, tmp_path):
    path = tmp_path / "edm-x.pkl"
    with pytest.raises(UserError, match=f"could not be downloaded from {source}/{name} .*{says}.*; put that file"):
        fetch.download(str(path), f"{source}/{name}")
    assert not any(tmp_path.iterdir())
    fetch.download(str(path), f"{source}/whole")
    assert path.read_bytes() == WHOLE
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("url", ["https://[x", "https://localhost/é.pkl", "https://a..b/x", "https://localhost:x/"])
def test_an_address_that_is_none_is_told(url, tmp_path):
    with pytest.raises(UserError, match="x.pkl: could not be downloaded from https://"):
        fetch.download(str(tmp_path / "x.pkl"), url)


COMMIT = "0123456789abcdef0123456789abcdef01234567"


class Hub(http.server.BaseHTTPRequestHandler):
    """As much of a hub of models as a download of one model asks for."""

    folder: Path

    def do_HEAD(self):
        self.do_GET()

    def do_GET(self):
        path = self.path.split("?")[0]
        names = sorted(str(file.relative_to(self.folder)) for file in self.folder.rglob("*") if file.is_file())
        if path.startswith("/api/models/someone/tiny"):
            about = {"id": "someone/tiny", "modelId": "someone/tiny", "sha": COMMIT, "tags": [], "downloads": 0,
                     "siblings": [{"rfilename": n} for n in names], "private": False, "gated": False}  # fmt: skip
            if "/tree/" in path:
                about = [
                    {"type": "file", "path": n, "size": (self.folder / n).stat().st_size, "oid": "0"} for n in names
                ]
            body = json.dumps(about).encode()
        elif path.startswith("/someone/tiny/resolve/") and path.split("/", 5)[5] in names:
            body = (self.folder / path.split("/", 5)[5]).read_bytes()
        else:
            self.send_error(404)
            return
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("X-Repo-Commit", COMMIT)
        self.send_header("ETag", f'"{hash(path) & 0xFFFFFFFF:08x}"')
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)

    def log_message(self, *_):
        pass


@pytest.mark.slow
def test_a_model_comes_from_a_hub_with_its_commit(project, tmp_path):
    """The stage and the hub's real client, against a hub on this machine."""
    Hub.folder = pipes.saved(pipes.unconditional()[0], tmp_path / "upload")
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    places = {"HF_ENDPOINT": f"http://127.0.0.1:{server.server_port}", "HF_HOME": str(tmp_path / "cache")}
    environment = {**os.environ, **places, "HF_HUB_DISABLE_XET": "1", "PYTHONPATH": str(ROOT)}

    def stage(path):
        command = [sys.executable, "-m", "stages.fetch", path]
        return subprocess.run(command, cwd=project, env=environment, capture_output=True, text=True, check=False)

    model = {"kind": "diffusers", "weights": "models/tiny", "condition": "none", "source": "someone/tiny"}
    edited(project, model=model | {"revision": "main"}, fetch=["models/tiny"])
    done = stage("models/tiny")
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("models/tiny: downloads someone/tiny at main from ")
    assert f"models/tiny: commit {COMMIT}; to stay with it" in done.stdout
    assert models.identity(model)["commit"] == COMMIT
    x, t = torch.randn(1, 3, 8, 8), torch.tensor(5.0)
    here = models.load(model | {"weights": str(Hub.folder)})
    assert torch.equal(models.load(model)(x, t), here(x, t))

    other = model | {"weights": "models/other", "source": "someone/other"}
    edited(project, model=other, fetch=["models/other"])
    failed = stage("models/other")
    assert failed.returncode == 1
    assert "Error: models/other: could not download someone/other" in failed.stderr
    assert "put its folder there yourself" in failed.stderr
    assert "Traceback" not in failed.stderr
    assert not Path("models/other").exists()

    server.shutdown()
    fetch.plan("models/tiny", edited(project, model=model | {"revision": "main"})).run()  # it is there: no hub is asked
    (project / "models/own").mkdir()
    own = model | {"weights": "models/own", "revision": "main"}
    fetch.plan("models/own", edited(project, model=own)).run()  # a folder of the user's is left as it is
    assert not any((project / "models/own").iterdir())


def test_a_model_for_which_there_is_no_room_is_told_and_no_half_of_its_folder_is_left(project, monkeypatch):
    def link(source, target):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), target)

    (project / "hub").mkdir()
    (project / "hub/model_index.json").touch()
    monkeypatch.setattr("diffusers.DiffusionPipeline.download", lambda *_, **__: str(project / "hub"))
    monkeypatch.setattr(fetch, "link", link)
    model = {"kind": "diffusers", "weights": "models/tiny", "condition": "none", "source": "someone/tiny"}
    plan = fetch.plan("models/tiny", edited(project, model=model, fetch=["models/tiny"]))
    with pytest.raises(UserError, match=r"^models/tiny: could not be copied .*No space left on device.*; make room"):
        plan.run()
    assert not any((project / "models").iterdir())
