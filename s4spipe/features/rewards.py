"""Rewards: what images shall have more of. Each is a number for every image, by which it can be differentiated."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from s4spipe.features import clip as clip_models
from s4spipe.features import digits as digits_network
from s4spipe.runtime import user_code
from s4spipe.runtime.errors import UserError, needs, unknown
from s4spipe.runtime.files import missing

# Images [B, C, height, width] in [-1, 1], and the number of the class or prompt of each, [B] -> rewards [B].
Reward = Callable[[Tensor, Tensor | None], Tensor]


def load(
    kind: str, path: str, device: torch.device, key: str, source: str = "none", prompts: Sequence[str] = ()
) -> Reward:
    """A reward by its kind.

    Args:
        kind: one of REWARDS.
        path: the file or folder of its network.
        device: where it runs.
        key: the block of params.yaml that it is from, for messages.
        source: for `callable`, the function ("module:function") that returns the network.
        prompts: of a text-to-image model.

    Raises:
        UserError: for an unknown kind, a network that cannot be loaded, and one that does not suit the model.
    """
    if kind not in REWARDS:
        raise unknown("reward", kind, REWARDS)
    if kind == "callable":
        net = user_code.network(f"{key}.source", source, path)
        return Users(net.to(device).eval().requires_grad_(False), f"{key}.source", source)
    if kind == "clip":
        return clip(path, device, f"{key}.weights", prompts)
    return {"digits": digits, "classifier": classifier}[kind](path, device, f"{key}.weights")


def digits(path: str, device: torch.device, key: str) -> Reward:
    """The log-probability of a digit's label by the embedded model's features network, which is a classifier."""
    net = digits_network.load(path).to(device).eval().requires_grad_(False)
    return lambda images, condition: log_probability(net.head(net.embed(images)), condition, key)


def classifier(path: str, device: torch.device, key: str) -> Reward:
    """The log-probability of an image's class by a classifier in the format of transformers, a local folder. Its
    classes must have the numbers that they have for the model.

    The objective of Dual-Solver (arXiv 2603.03973) is the mean of this.
    """
    with needs("full", key):
        from transformers import AutoImageProcessor, AutoModelForImageClassification
    if not Path(path).exists():
        raise missing(path)
    try:
        net, found = AutoModelForImageClassification.from_pretrained(
            path, local_files_only=True, output_loading_info=True
        )
        if lacking := sorted(found["missing_keys"]):
            raise ValueError(f"its files lack {len(lacking)} weights, such as {lacking[0]}")
        processor = AutoImageProcessor.from_pretrained(path, local_files_only=True)
    except Exception as error:  # what a folder holds may raise anything
        reason = (str(error).splitlines() or [type(error).__name__])[0][:150]
        raise UserError(f"{key}: {path}: not a folder of an image classifier ({reason}); put there what transformers "
                        "calls a model for image classification") from None  # fmt: skip
    net = net.to(device).eval().requires_grad_(False)
    return lambda images, condition: log_probability(net(pixels(processor, images)).logits, condition, key)


def clip(path: str, device: torch.device, key: str, prompts: Sequence[str]) -> Reward:
    """The cosine between an image and its prompt, by a CLIP model, or by one of people's preferences that was made from
    one, such as PickScore (Kirstain et al. 2023, arXiv 2305.01569)."""
    if not prompts:
        raise UserError(f"{key}: clip compares images with their prompts, and this model has none: use another reward")
    model, processor, longest = clip_models.load(path, device, key, "leave the reward out")
    model.requires_grad_(False)

    def reward(images: Tensor, condition: Tensor | None) -> Tensor:
        assert condition is not None  # as there are prompts
        asked = [prompts[i] for i in condition.tolist()]
        words = processor.tokenizer(asked, return_tensors="pt", padding=True, truncation=True, max_length=longest)
        out = model(pixel_values=pixels(processor.image_processor, images), **words.to(images.device))
        return torch.cosine_similarity(out.image_embeds, out.text_embeds)

    return reward


def pixels(processor: Any, images: Tensor) -> Tensor:
    """Images in [-1, 1] as a network of transformers wants them: what its processor does, but without rounding, so that
    gradients can pass."""
    images = (images.float().clamp(-1, 1) + 1) / 2
    return processor(images.expand(-1, 3, -1, -1), do_rescale=False, return_tensors="pt")["pixel_values"]


def log_probability(logits: Tensor, condition: Tensor | None, key: str) -> Tensor:
    """log p(class) [B] of logits [B, classes]."""
    if condition is None:
        raise UserError(f"{key}: a classifier's reward needs classes, and this model has none: use another reward")
    if int(condition.max()) >= logits.shape[1]:
        raise UserError(f"{key}: its network knows {logits.shape[1]} classes, and the model has more: use one that "
                        "knows the same")  # fmt: skip
    return logits.log_softmax(1).gather(1, condition[:, None])[:, 0]


class Users:
    """The user's own network: called with images [B, C, height, width] in [-1, 1] and conditions [B], or None where the
    model has none; it returns rewards [B].

    Raises UserError if it raises, or returns anything else than one number for each image that can be differentiated.
    """

    def __init__(self, net: nn.Module, key: str, source: str):
        self.net, self.key, self.source = net, key, source

    def __call__(self, images: Tensor, condition: Tensor | None) -> Tensor:
        with user_code.told(self.key, self.source, "fails on images [B, C, height, width] and conditions [B]"):
            rewards = self.net(images, condition)
        if not isinstance(rewards, Tensor) or not rewards.is_floating_point() or rewards.shape != (len(images),):
            got = list(rewards.shape) if isinstance(rewards, Tensor) else type(rewards).__name__
            raise UserError(f"{self.key}: {self.source}: its network must return rewards [{len(images)}] for images "
                            f"{list(images.shape)}, got {got}")  # fmt: skip
        if torch.is_grad_enabled() and images.requires_grad and not rewards.requires_grad:
            raise UserError(f"{self.key}: {self.source}: its network cannot be differentiated; take torch.no_grad and "
                            "detach out")  # fmt: skip
        return rewards


REWARDS = ("digits", "classifier", "clip", "callable")
