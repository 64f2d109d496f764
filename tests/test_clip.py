"""CLIP score with a small random CLIP model, against its cosine written out."""

import json
import re
import shutil

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from support import standins
from support.hostile import said_of

from s4spipe.evaluation import clip

PROMPTS = ["a cat", "the sea", "x y z"]


def test_it_is_the_mean_cosine_of_images_and_their_prompts(tmp_path):
    model, processor, text = standins.clip(tmp_path / "clip")
    images = np.random.default_rng(0).integers(0, 256, (5, 3, 16, 16), dtype=np.uint8)
    inputs = processor(text=[PROMPTS[i % 3] for i in range(5)], images=list(torch.from_numpy(images)),
                       return_tensors="pt", padding=True)  # fmt: skip
    seen = model.visual_projection(model.vision_model(pixel_values=inputs["pixel_values"]).pooler_output)
    read = model.text_projection(text.text_model(input_ids=inputs["input_ids"]).pooler_output)
    cosines = (seen * read).sum(1) / seen.norm(dim=1) / read.norm(dim=1)
    ours = clip.score(images, PROMPTS, str(tmp_path / "clip"), torch.device("cpu"), batch_size=2)
    assert ours == pytest.approx(100 * cosines.clamp(min=0).mean().item(), abs=1e-3)
    assert cosines.std() > 0.01


def test_a_missing_model_is_told():
    assert "fid.clip: no CLIP model at 'no/such/folder'" in said_of(lambda: score("no/such/folder"))


def score(folder, prompts=PROMPTS):
    images = np.random.default_rng(0).integers(0, 256, (3, 3, 16, 16), dtype=np.uint8)
    return clip.score(images, prompts, str(folder), torch.device("cpu"))


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    folder = tmp_path_factory.mktemp("clip")
    standins.clip(folder)
    return folder


@pytest.fixture
def folder(whole, tmp_path):
    return shutil.copytree(whole, tmp_path / "clip")


def edited(path, change):
    """A safetensors file with other tensors, or a JSON file with other entries."""
    content = load_file(path) if path.suffix == ".safetensors" else json.loads(path.read_text())
    change(content)
    if path.suffix == ".safetensors":
        save_file(content, path, {"format": "pt"})
    else:
        path.write_text(json.dumps(content))


POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 605\n"
PROJECTION = "visual_projection.weight"
DAMAGES = {
    "a weight is absent": (lambda f: edited(f, lambda w: w.pop(PROJECTION)), f"1 of its weights .*{PROJECTION}"),
    "a part is absent": (lambda f: edited(f, lambda w: [w.pop(k) for k in [*w] if k[0] == "v"]), "24 of its weights"),
    "a weight has another shape": (lambda f: edited(f, lambda w: w.update({PROJECTION: torch.ones(4, 8)})), PROJECTION),
    "a weight is NaN": (lambda f: edited(f, lambda w: w[PROJECTION].fill_(torch.nan)), "the score .* is not finite"),
    "it is half": (lambda f: f.write_bytes(f.read_bytes()[:9000]), "no CLIP model at"),
    "it is a pointer": (lambda f: f.write_bytes(POINTER), "no CLIP model at"),
    "it is absent": (lambda f: f.unlink(), "no CLIP model at"),
    "no tokenizer": (lambda f: [p.unlink() for p in f.parent.glob("tokenizer*")], "no tokenizer.json"),
    "a config of another model": (lambda f: edited(f.with_name("config.json"), lambda c: c.update(model_type="siglip")),
                                  "model_type siglip, not clip"),
    "no JSON": (lambda f: f.with_name("config.json").write_text("{"), "no CLIP model at"),
}  # fmt: skip


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_folder_that_is_not_whole_gives_no_score(damage, folder):
    spoil, says = DAMAGES[damage]
    spoil(folder / "model.safetensors")
    said = said_of(lambda: score(folder))
    assert said.startswith("fid.clip: ")
    assert re.search(says, said)


def test_a_long_prompt_is_cut_where_the_model_ends(folder):
    long = ["a b c d e f g h i j k l m n"]
    cut = score(folder, long)
    edited(folder / "tokenizer_config.json", lambda config: config.update(model_max_length=10**30))
    assert score(folder, long) == pytest.approx(cut)
