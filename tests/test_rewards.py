"""Rewards: each against what it is said to be, differentiable, and told plainly where it cannot be had."""

import json
import re

import pytest
import torch
import transformers
from support import standins
from support.hostile import said_of
from torch import nn

from s4spipe.features import digits, rewards
from s4spipe.features.digits import DigitFeatures
from s4spipe.runtime.files import write_tensors

CPU, PROMPTS = torch.device("cpu"), ["a cat", "the sea", "x y z"]
PICK = torch.tensor([2, 0, 1, 2])


def load(kind, path="", **options):
    return rewards.load(kind, str(path), CPU, "refine.reward", **options)


def images(channels=3, side=16):
    return torch.rand(4, channels, side, side, generator=torch.Generator().manual_seed(0)) * 2 - 1


def pixel_values(processor, x):
    """By the processor itself, from rounded images."""
    rounded = ((x + 1) * 127.5).round().to(torch.uint8).expand(-1, 3, -1, -1)
    return processor(list(rounded), return_tensors="pt")["pixel_values"]


@pytest.fixture(scope="module")
def classifier(tmp_path_factory):
    folder = tmp_path_factory.mktemp("classifier")
    torch.manual_seed(0)
    config = transformers.ViTConfig(hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=8,
                                    image_size=16, patch_size=8, num_labels=3)  # fmt: skip
    model = transformers.ViTForImageClassification(config).eval()
    model.classifier.weight.data.mul_(30)
    model.save_pretrained(folder)
    transformers.ViTImageProcessor(size={"height": 16, "width": 16}).save_pretrained(folder)
    return folder, model


@pytest.fixture
def digits_file(tmp_path):
    torch.manual_seed(0)
    write_tensors(tmp_path / "digits.safetensors", DigitFeatures().state_dict(), {"shape": {}})
    return tmp_path / "digits.safetensors"


def check_slope(reward, x, condition):
    """Along a random direction, against a finite difference in float64 of the sum."""
    x = x.clone().requires_grad_()
    (slope,) = torch.autograd.grad(reward(x, condition).sum(), x)
    along = torch.randn(x.shape, generator=torch.Generator().manual_seed(1)) * (x.detach().abs() < 0.9)
    h = 1e-2
    up, down = (reward(x.detach() + s * h * along, condition).double().sum() for s in (1, -1))
    assert (slope * along).sum().item() == pytest.approx(((up - down) / (2 * h)).item(), rel=0.03, abs=1e-3)
    assert slope.abs().sum() > 0


def test_clip_is_the_cosine_of_an_image_and_its_prompt(tmp_path):
    model, processor, text = standins.clip(tmp_path / "clip")
    reward, x = load("clip", tmp_path / "clip", prompts=PROMPTS), images()
    seen = model.visual_projection(model.vision_model(pixel_values(processor.image_processor, x)).pooler_output)
    words = processor.tokenizer([PROMPTS[i] for i in PICK], return_tensors="pt", padding=True)
    read = model.text_projection(text.text_model(words["input_ids"]).pooler_output)
    cosines = (seen * read).sum(1) / seen.norm(dim=1) / read.norm(dim=1)
    torch.testing.assert_close(reward(x, PICK), cosines, rtol=0, atol=3e-3)  # which were rounded to 8 bits
    assert cosines.std() > 0.01
    alone = [reward(x[i : i + 1], PICK[i : i + 1]) for i in range(4)]
    torch.testing.assert_close(torch.cat(alone), reward(x, PICK))
    check_slope(reward, x, PICK)


@pytest.mark.parametrize("side", [16, 24])
def test_a_classifiers_reward_is_the_log_probability_of_the_class(side, classifier):
    folder, model = classifier
    reward, x = load("classifier", folder), images(side=side)
    processor = transformers.AutoImageProcessor.from_pretrained(folder)
    expected = model(pixel_values(processor, x)).logits.softmax(1)[torch.arange(4), PICK].log()
    torch.testing.assert_close(reward(x, PICK), expected, rtol=0, atol=0.02)
    assert expected.std() > 0.05
    check_slope(reward, x, PICK)


def test_grey_images_are_shown_as_coloured_ones(classifier):
    reward, x = load("classifier", classifier[0]), images(1)
    torch.testing.assert_close(reward(x, PICK), reward(x.expand(-1, 3, -1, -1), PICK))


def test_that_of_the_digits_is_the_log_probability_of_the_label(digits_file):
    reward, x, net = load("digits", digits_file), images(1, 8), digits.load(str(digits_file))
    expected = net.head(net((x + 1) * 127.5)).softmax(1)[torch.arange(4), PICK].log()
    torch.testing.assert_close(reward(x, PICK), expected)
    check_slope(reward, x, PICK)


class Brightness(nn.Module):
    def forward(self, x, condition):
        return x.mean((1, 2, 3)) * (1 if condition is None else condition)


def user(monkeypatch, returned):
    import sys
    import types

    module = types.ModuleType("own_reward")
    module.net = lambda: returned
    monkeypatch.setitem(sys.modules, "own_reward", module)
    return load("callable", "none", source="own_reward:net")


def test_the_users_own_is_called_with_images_and_conditions(monkeypatch):
    reward, x = user(monkeypatch, Brightness()), images()
    torch.testing.assert_close(reward(x, PICK), x.mean((1, 2, 3)) * PICK)
    torch.testing.assert_close(reward(x, None), x.mean((1, 2, 3)))
    check_slope(reward, x, None)


class Wrong(nn.Module):
    def __init__(self, say):
        super().__init__()
        self.say = say

    def forward(self, x, condition):
        return self.say(x)


@pytest.mark.parametrize(
    ("say", "says"),
    [
        (lambda x: x.mean(), "must return rewards [4] for images [4, 3, 16, 16], got []"),
        (lambda x: [1.0], "must return rewards [4] for images [4, 3, 16, 16], got list"),
        (lambda x: x.mean((1, 2, 3)).detach(), "cannot be differentiated"),
        (lambda x: x.nothing(), "fails on images [B, C, height, width] and conditions [B]: AttributeError"),
    ],
)
def test_a_users_network_that_does_something_else_is_told(say, says, monkeypatch):
    reward = user(monkeypatch, Wrong(say))
    said = said_of(lambda: reward(images().requires_grad_(), PICK))
    assert said.startswith("refine.reward.source: own_reward:net")
    assert says in said


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (lambda folder: load("beauty"), "unknown reward 'beauty'"),
        (lambda folder: load("clip", folder), "refine.reward.weights: clip compares images with their prompts"),
        (lambda folder: load("clip", "no/such", prompts=PROMPTS), "refine.reward.weights: no CLIP model at 'no/such'"),
        (lambda folder: load("classifier", "no/such"), "no/such: no such file"),
        (lambda folder: load("classifier", folder)(images(), None), "needs classes, and this model has none"),
        (lambda folder: load("classifier", folder)(images(), PICK + 1), "its network knows 3 classes, and the model"),
        (lambda folder: load("callable", source="nothing"), "refine.reward.source: must be module:function"),
    ],
)
def test_what_cannot_be_had_is_told(call, says, classifier):
    assert says in said_of(lambda: call(classifier[0]))


def test_a_folder_of_something_else_is_no_classifier(classifier, tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "clip"}))
    assert re.search("not a folder of an image classifier", said_of(lambda: load("classifier", tmp_path)))
