"""Models' folders, addresses and names from strangers: no code of theirs is run, and their names are only text."""

import sys
import threading
from pathlib import Path

import diffusers
import numpy as np
import pytest
import torch
from support import finished, pipes
from support.hostile import MARK, Hostile, said_of

from s4spipe import models
from s4spipe.pipeline import fetch
from s4spipe.pipeline.schema import Params
from s4spipe.report import figures, page
from s4spipe.runtime.files import read_json, write_json

CPU = torch.device("cpu")
pytestmark = pytest.mark.usefixtures("place")  # in which nothing hostile may appear
HTML = "<script>alert(1)</script>&\"'"


# Models' folders


@pytest.fixture
def folder(place):
    pipes.unconditional()[0].save_pretrained("model")
    return place / "model"


def change(path, **keys):
    write_json(path, read_json(path) | keys)


def loaded():
    return models.load({"kind": "diffusers", "weights": "model", "condition": "none"})


def test_the_folder_is_loaded_as_it_is(folder):
    assert loaded().sample_shape == (3, 8, 8)


@pytest.mark.parametrize(
    ("part", "says"),
    [
        (["os", "system"], "comes from os, but only networks of diffusers are loaded"),
        (["hostile", "Net"], "comes from hostile"),
        (["diffusers", "DiffusionPipeline"], "'DiffusionPipeline', which is no network of diffusers"),
        (["diffusers", "AutoModel"], "'AutoModel', which is no network"),
        (["diffusers", "DDPMScheduler"], "'DDPMScheduler', which is no network"),
        (["diffusers", "__loader__"], "which is no network"),
        (["diffusers", "utils.os.system"], "which is no network"),
        (["diffusers", {"x": 1}], "which is no network"),
        ([], "not a complete DDPMPipeline"),
        (None, "not a complete DDPMPipeline"),
    ],
)
def test_a_folder_may_name_networks_of_diffusers_only(part, says, folder):
    Path("hostile.py").write_text(f"open('{MARK}', 'w')", encoding="utf-8")
    change(folder / "model_index.json", unet=part)
    assert says in said_of(loaded)
    assert "hostile" not in sys.modules


@pytest.mark.parametrize("name", ["StableDiffusionPipeline3", "Hostile", ["pipeline", "Hostile"], None, "__class__"])
def test_a_folders_own_pipeline_is_not_run(name, folder):
    (folder / "pipeline.py").write_text(f"open('{MARK}', 'w')\nclass Hostile: pass", encoding="utf-8")
    change(folder / "model_index.json", _class_name=name)
    for action in (loaded, lambda: models.base.loading.embed({"kind": "diffusers", "weights": "model"}, ["x"], CPU)):
        assert said_of(action).startswith("model")


@pytest.mark.parametrize("part", [["hostile", "Net"], ["transformers", "AutoModel"], ["transformers", "__spec__"],
                                  ["diffusers", "pipelines.os"], ["os"], ["os", "system", "x"]])  # fmt: skip
def test_text_encoders_are_those_of_transformers(part, place):
    Path("hostile.py").write_text(f"open('{MARK}', 'w')", encoding="utf-8")
    pipes.guided()[0].save_pretrained("model")
    change(place / "model/model_index.json", text_encoder=part, tokenizer=part)
    settings = {"kind": "diffusers", "weights": "model", "condition": "prompts"}
    assert "only classes of diffusers and transformers are loaded" in said_of(
        lambda: models.base.loading.embed(settings, ["x"], CPU)
    )
    assert "hostile" not in sys.modules


def test_code_that_a_config_names_is_not_run(folder):
    (folder / "unet/hostile.py").write_text(f"open('{MARK}', 'w')\nclass Net: pass", encoding="utf-8")
    change(folder / "unet/config.json", auto_map={"AutoModel": "hostile.Net"}, _class_name="hostile.Net")
    assert isinstance(loaded().net, diffusers.UNet2DModel)


def test_pickled_weights_of_a_network_run_nothing(folder):
    weights = folder / "unet/diffusion_pytorch_model.safetensors"
    weights.unlink()
    torch.save({"x": Hostile()}, weights.with_suffix(".bin"))
    assert "model: not a complete DDPMPipeline" in said_of(loaded)


@pytest.mark.parametrize("shard", ["../../secret.safetensors", "/etc/passwd", "sub/x.safetensors", 7])
def test_shards_lie_beside_their_index(shard, folder):
    index = folder / "unet/diffusion_pytorch_model.safetensors.index.json"
    write_json(index, {"metadata": {}, "weight_map": {"conv_in.weight": shard}})
    assert "weights must be in files beside it" in said_of(loaded)


def test_links_in_a_circle_are_no_trap(folder):
    (folder / "again").symlink_to(folder)
    (folder / "self").symlink_to(folder / "self")
    assert loaded().sample_shape == (3, 8, 8)


# Fetching


@pytest.mark.parametrize(
    "path",
    ["../x/inception-2015-12-05.pt", "/tmp/inception-2015-12-05.pt", "a/../../inception-2015-12-05.pt", ".", "",
     "./", "a/..", "https://example.com/inception-2015-12-05.pt", "file:///etc/inception-2015-12-05.pt"],
)  # fmt: skip
def test_nothing_is_fetched_to_a_place_outside_the_project(path):
    assert f"fetch: {path} is no place within the project's folder" in said_of(lambda: fetch.plan(path, Params()))


@pytest.mark.parametrize("source", ["http://example.com/edm-x.pkl", "file:///etc/edm-x.pkl", "ftp://x/edm-x.pkl"])
def test_models_come_by_https_alone(source):
    model = Params().model.model_copy(update={"kind": "edm", "weights": "edm.safetensors", "source": source})
    found = Params().model_copy(update={"model": model})
    assert f"model.source: {source} cannot be trusted" in said_of(lambda: fetch.plan("edm.safetensors", found))


def test_a_download_does_not_follow_an_address_into_the_machine(place):
    """A server that sends its guest to a file:// address gets an error."""
    import http.server

    class Server(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_response(302)
            self.send_header("Location", f"file://{place}/secret")
            self.end_headers()

        def log_message(self, *_):
            pass

    Path("secret").write_text("secret", encoding="utf-8")
    server = http.server.HTTPServer(("127.0.0.1", 0), Server)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        url = f"http://127.0.0.1:{server.server_port}/x"
        assert "could not be downloaded" in said_of(lambda: fetch.download("x.npz", url))
    finally:
        server.shutdown()
        server.server_close()
    assert not Path("x.npz").exists()


# Names that reach pages and figures


def test_names_of_any_kind_are_text_on_a_page(place):
    run = finished.make(place, learned=["s4s"], refined=[])
    for cell in run.cells:
        path = run.places.evaluation(cell, "metrics.json")
        write_json(path, read_json(path) | {"schedule": HTML})
    again = type(run)(run.root, run.params)
    other = f"{HTML}$\\frac{{$"
    shown = page.report(again) + page.comparison({other: again, "main": again})
    assert shown.count("<script>") == 2  # the pages' own
    assert "alert(1)" in shown
    assert shown.count("</script>") == 2


@pytest.mark.parametrize("name", ["$\\frac{$", "$x$", "a$b", "\\$$", "x" * 10**6, "a\nb\0c", HTML])
def test_a_name_is_no_formula_in_a_figure(name):
    import matplotlib.pyplot as plt

    figure = figures.sample_sheet([(name, np.zeros((2, 1, 8, 8), np.uint8))], "2 NFE")
    label = figure.axes[0].get_yticklabels()[0]
    figures.save(figure, Path("x.png"))
    assert len(label.get_text()) <= 70
    svg = figures.svg(figures.sample_sheet([(name, np.zeros((2, 1, 8, 8), np.uint8))], "2 NFE"), name)
    assert "<script" not in svg
    plt.close("all")
