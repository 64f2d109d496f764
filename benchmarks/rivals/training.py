"""Training of a confirmation model, of its autoencoder, and of the networks that look at its samples."""

from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, mse_loss

from benchmarks.rivals.problems import confirmation
from benchmarks.rivals.problems.latent import Latent
from benchmarks.rivals.problems.looks import TURNS
from benchmarks.rivals.problems.networks import Autoencoder
from benchmarks.rivals.problems.pictures import Patches
from s4spipe.models import Denoiser
from s4spipe.models.noise import VPDiscrete
from s4spipe.runtime.files import write_tensors
from s4spipe.runtime.scratch import Scratch
from s4spipe.training.unet import Loss, UNetTraining, minimise

LABEL_DROPOUT = 0.1
KL_WEIGHT = 3e-4  # of the autoencoder: small, so that its images are sharp
NOISE = 0.3  # the most that is added to what the networks that look are trained on
HELD_OUT = 2000  # patches that a validation draws


def model(name: str, training: UNetTraining, first: UNetTraining, scratch: Scratch) -> None:
    """Train a model and write it with the loss on patches that it has not seen drawn.

    Args:
        name: of the model.
        training: how it is trained.
        first: how its autoencoder is, if it has one.
        scratch: where progress is saved, so that an interrupted run resumes.
    """
    module = confirmation.MODELS[name]
    torch.manual_seed(training.seed)
    net, told = module.network(""), {}
    if isinstance(net, Latent):
        told["autoencoder_error"] = autoencoder(net.autoencoder, module.PATCHES, first, scratch.within("autoencoder"))
    denoiser: Denoiser = module.denoiser(net)
    encode = getattr(net if hasattr(net, "encode") else denoiser, "encode", lambda images: images)
    learned = net.unet if isinstance(net, Latent) else net

    def loss(rng: np.random.Generator, n: int = training.batch_size) -> Tensor:
        images, labels = module.PATCHES.draw(rng, n)
        with torch.no_grad():
            x0 = encode(images)
        return denoising_loss(denoiser, x0, labels if denoiser.num_classes else None, rng)

    minimise(learned, loss, training, scratch.within("model"), name)
    told["loss"] = validation(learned, lambda rng: loss(rng, HELD_OUT), training)
    write(confirmation.path(name), net, told)


def denoising_loss(denoiser: Denoiser, x0: Tensor, labels: Tensor | None, rng: np.random.Generator) -> Tensor:
    """The mean squared error of what the network predicts, a scalar, at times that are uniform in [t_min, T].

    That is a factor times the error of the x0 prediction: (alpha / sigma)^2 for a network that predicts the noise, and
    1 / sigma^2 for one that predicts a velocity. One that predicts x_0 has the latter, with a `least_sigma`.

    Args:
        denoiser: around the network.
        x0: clean states [B, C, H, W].
        labels: [B], a tenth of which are dropped, or None.
        rng: draws times and noise.
    """
    noise = denoiser.noise_schedule
    t = torch.tensor(rng.uniform(noise.t_min, noise.T, len(x0)))
    if isinstance(noise, VPDiscrete):
        t = t.round()
    alpha, sigma = (f(t).float()[:, None, None, None] for f in (noise.alpha, noise.sigma))
    x_t = alpha * x0 + sigma * torch.tensor(rng.standard_normal(x0.shape), dtype=torch.float32)
    if labels is not None and denoiser.null_condition is not None:
        dropped = torch.tensor(rng.random(len(x0)) < LABEL_DROPOUT)
        labels = torch.where(dropped, denoiser.null_condition, labels)
    error = (denoiser.predict(x_t, t.float(), labels) - x0) / sigma.clamp(min=getattr(denoiser, "least_sigma", 0.0))
    training_of = getattr(denoiser, "training_of", None)
    if training_of is not None and training_of.prediction == "epsilon":
        error = alpha * error
    return error.square().mean()


def autoencoder(net: Autoencoder, patches: Patches, training: UNetTraining, scratch: Scratch) -> float:
    """Train an autoencoder, and set the scale of its latents. Returns the RMS error of its images."""

    def loss(rng: np.random.Generator) -> Tensor:
        images, _ = patches.draw(rng, training.batch_size)
        mean, log_variance = net.posterior(images)
        noise = torch.tensor(rng.standard_normal(mean.shape), dtype=torch.float32)
        kl = 0.5 * (mean.square() + log_variance.exp() - 1 - log_variance).mean()
        return mse_loss(net.decoder(mean + (0.5 * log_variance).exp() * noise), images) + KL_WEIGHT * kl

    minimise(net, loss, training, scratch, "autoencoder")
    with torch.no_grad():
        images, _ = patches.draw(np.random.default_rng((training.seed, training.steps)), HELD_OUT)
        mean, _ = net.posterior(images)
        net.mean.copy_(mean.mean((0, 2, 3), keepdim=True))
        net.std.copy_(mean.std((0, 2, 3), keepdim=True))
        return (net.decode(net.encode(images)) - images).square().mean().sqrt().item()


def look(name: str, which: str, training: UNetTraining, scratch: Scratch) -> None:
    """Train a network that looks at samples, and write it with what it reaches on patches it has not seen drawn: its
    accuracy, or the share of the noise that it removes."""
    patches = confirmation.MODELS[name].PATCHES
    training = replace(training, seed=training.seed + 1 + confirmation.NETWORKS.index(which))
    torch.manual_seed(training.seed)
    net = confirmation.look(name, which)

    def noisy(images: Tensor, rng: np.random.Generator) -> Tensor:
        level = torch.tensor(NOISE * rng.random((len(images), 1, 1, 1)), dtype=torch.float32)
        return images + level * torch.tensor(rng.standard_normal(images.shape), dtype=torch.float32)

    def turned(rng: np.random.Generator, n: int) -> tuple[Tensor, Tensor]:
        images, photograph = patches.draw(rng, n)
        turns = torch.tensor(rng.integers(TURNS, size=n))
        for k in range(TURNS):
            images[turns == k] = images[turns == k].rot90(k, (2, 3))
        return images, photograph * TURNS + turns

    def loss(rng: np.random.Generator) -> Tensor:
        if which == "seen":
            images, labels = turned(rng, training.batch_size)
            return cross_entropy(net(noisy(images, rng)), labels, label_smoothing=0.05)
        images, _ = patches.draw(rng, training.batch_size)
        return mse_loss(net(noisy(images, rng)), images)

    def reached(rng: np.random.Generator) -> Tensor:
        if which == "seen":
            images, labels = turned(rng, HELD_OUT)
            return (net(images).argmax(1) == labels).float().mean()
        images, _ = patches.draw(rng, HELD_OUT)
        return mse_loss(net(noisy(images, rng)), images).sqrt()

    minimise(net, loss, training, scratch.within(which), f"{name} {which}")
    measure = "accuracy" if which == "seen" else "error"
    write(confirmation.path(name, which), net, {measure: validation(net, reached, training)})


@torch.no_grad()
def validation(net: nn.Module, measure: Loss, training: UNetTraining) -> float:
    """A measure on draws that no step had."""
    net.eval()
    return measure(np.random.default_rng((training.seed, training.steps))).item()


def write(path: str, net: nn.Module, told: dict[str, Any]) -> None:
    """Write weights in half precision."""
    write_tensors(path, {name: tensor.half() for name, tensor in net.state_dict().items()}, told)
