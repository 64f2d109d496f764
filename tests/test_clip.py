"""CLIP score with a small random CLIP model, against its cosine written out."""

import pipes

import numpy as np
import pytest
import torch
import transformers
from pipeline import ROOT, edit

from s4spipe import clip, params
from s4spipe.errors import UserError

PROMPTS = ["a cat", "the sea", "x y z"]


@pytest.fixture
def settings(tmp_path, monkeypatch):
    (tmp_path / "params.yaml").write_text((ROOT / "params.yaml").read_text())
    (tmp_path / "prompts.txt").write_text("\n".join(PROMPTS))
    monkeypatch.chdir(tmp_path)

    def make(path):
        edit(tmp_path, model={"kind": "diffusers", "condition": "prompts"}, prompts="prompts.txt", fid={"clip": path},
             classical=["ddim"], classical_steps={"ddim": "logsnr"})  # fmt: skip
        return params.load("params.yaml")

    return make


def test_it_is_the_mean_cosine_of_images_and_their_prompts(settings, tmp_path):
    torch.manual_seed(0)
    tokenizer, text = pipes.clip(8, projection=6)
    vision = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2,
              "image_size": 16, "patch_size": 8}  # fmt: skip
    config = transformers.CLIPConfig(text_config=text.config.to_dict(), vision_config=vision, projection_dim=6)
    model = transformers.CLIPModel(config).eval()
    model.text_model.load_state_dict(text.text_model.state_dict())
    processor = transformers.CLIPProcessor(
        transformers.CLIPImageProcessor(size={"shortest_edge": 16}, crop_size=16), tokenizer
    )
    model.save_pretrained(tmp_path / "clip")
    processor.save_pretrained(tmp_path / "clip")
    images = np.random.default_rng(0).integers(0, 256, (5, 3, 16, 16), dtype=np.uint8)
    inputs = processor(text=[PROMPTS[i % 3] for i in range(5)], images=list(torch.from_numpy(images)),
                       return_tensors="pt", padding=True)  # fmt: skip
    seen = model.visual_projection(model.vision_model(pixel_values=inputs["pixel_values"]).pooler_output)
    read = model.text_projection(text.text_model(input_ids=inputs["input_ids"]).pooler_output)
    cosines = (seen * read).sum(1) / seen.norm(dim=1) / read.norm(dim=1)
    assert clip.score(images, settings("clip"), torch.device("cpu"), batch_size=2) == pytest.approx(
        100 * cosines.clamp(min=0).mean().item(), abs=1e-3
    )
    assert cosines.std() > 0.01


def test_a_missing_model_is_told(settings):
    with pytest.raises(UserError, match="fid.clip: no CLIP model at 'no/such/folder'"):
        clip.score(np.zeros((1, 3, 16, 16), np.uint8), settings("no/such/folder"), torch.device("cpu"))
