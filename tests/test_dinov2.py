"""DINOv2 with a small random network, against transformers' own and Pillow's resizing."""

import json
import shutil

import numpy as np
import pytest
import torch
import transformers
from PIL import Image
from safetensors.torch import load_file, save_file
from support.hostile import said_of

from s4spipe import features
from s4spipe.evaluation import fid

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    torch.manual_seed(0)
    config = transformers.Dinov2Config(hidden_size=12, num_hidden_layers=2, num_attention_heads=2, image_size=56)
    transformers.Dinov2Model(config).save_pretrained(folder := tmp_path_factory.mktemp("dinov2"))
    return folder


@pytest.fixture
def folder(whole, tmp_path):
    return shutil.copytree(whole, tmp_path / "dinov2")


def test_its_features_are_those_of_transformers_own(whole):
    images = np.random.default_rng(0).integers(0, 256, (3, 3, 40, 32), dtype=np.uint8)
    net = features.load("dinov2", str(whole), CPU)
    ours = torch.cat(list(fid.features(images, net, CPU)))
    size, mean, deviation = {"height": 224, "width": 224}, [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]
    processor = transformers.BitImageProcessor(size=size, do_center_crop=False, image_mean=mean,
                                               image_std=deviation)  # fmt: skip
    pictures = [Image.fromarray(image.transpose(1, 2, 0)) for image in images]
    given = processor(pictures, return_tensors="pt")
    own = transformers.Dinov2Model.from_pretrained(whole)(**given).pooler_output.detach()
    assert (ours - own).abs().max() < 0.02 * own.std()  # theirs rounds pixels to whole numbers
    assert own.std(0).mean() > 1e-3


def test_the_features_that_learning_sees_are_nearly_those_of_fid(whole):
    images = np.random.default_rng(0).integers(0, 256, (3, 3, 40, 32), dtype=np.uint8)
    net = features.load("dinov2", str(whole), CPU)
    x = (torch.from_numpy(images) / 127.5 - 1).requires_grad_()
    seen, judged = net.embed(x), torch.cat(list(fid.features(images, net, CPU)))
    assert (seen - judged).abs().max() < 0.02 * judged.std()
    assert net.residual(x, x.flip(0)).shape[0] == 3
    (slope,) = torch.autograd.grad(net.residual(x, x.detach().flip(0)).square().sum(), x)
    assert slope.abs().max() > 0
    assert net.embed(x[:, :1]).shape == (3, 12)


def change(path, **keys):
    path.write_text(json.dumps(json.loads(path.read_text()) | keys))


def without_a_layer(path):
    save_file({key: value for key, value in load_file(path).items() if "layer.1" not in key}, path, {"format": "pt"})


@pytest.mark.parametrize(
    ("spoil", "says"),
    [
        (lambda f: shutil.rmtree(f), "no such file"),
        (lambda f: (f / "config.json").unlink(), "not a folder of DINOv2"),
        (lambda f: change(f / "config.json", model_type="vit"), "model_type vit, not dinov2"),
        (lambda f: without_a_layer(f / "model.safetensors"), "its files lack"),
        (lambda f: (f / "model.safetensors").write_bytes(b"no"), "not a folder of DINOv2"),
    ],
)
def test_what_is_no_whole_network_is_refused(spoil, says, folder):
    spoil(folder)
    assert says in said_of(lambda: features.load("dinov2", str(folder), CPU))
