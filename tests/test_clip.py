"""CLIP score with a small random CLIP model, against its cosine written out."""

import numpy as np
import pytest
import torch
from support import standins

from s4spipe.evaluation import clip
from s4spipe.runtime.errors import UserError

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
    with pytest.raises(UserError, match="fid.clip: no CLIP model at 'no/such/folder'"):
        clip.score(np.zeros((1, 3, 16, 16), np.uint8), PROMPTS, "no/such/folder", torch.device("cpu"))
