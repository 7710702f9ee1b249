"""Generation of images by variational autoencoders: from images and noise (B, P + E) to logits of pixels, mean and log-variance.

Axes: M members (networks), B images of a batch, N images of a split, P pixels times channels of one, E latent size; an input
has P + E values, an output C = P + 2 E.

The noise that a network draws its latents with, z = mean + exp(log-variance / 2) * noise, is part of its input: fixed for
each image of a split, so that the same network has the same score, and drawn anew in training.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from typing import ClassVar

import numpy as np
import torch
from jaxtyping import Float, Int64, Shaped, UInt8
from torch import Tensor

from netspace import losses, metrics
from netspace.losses import autoencoder_divergence, evidence_bound
from netspace.streams import Stream, generator
from netspace.tasks.base import CHUNK, SPLITS, Task
from netspace.tasks.images import Classification, with_channels

LATENT = 16  # values of a latent, unless the settings say otherwise
SAMPLES = 64  # latents of each image by which likelihoods are estimated
UNRELATED = ("crop_padding", "flip", "field", "points", "variants")


class Generation(Task):
    """Variational autoencoders with Bernoulli pixels. Scores are exp(ELBO / P), a likelihood per pixel: higher is better.

    Grey values are probabilities of white. The negative log-likelihood that `assess` returns bounds that of images made black
    and white at random, and is in nats for an image, as are `elbo` and the loss; lower is better of it, higher of `elbo`.
    """

    score_name: ClassVar[str] = "likelihood per pixel"
    input_noun: ClassVar[str] = "images with noise"
    output_noun: ClassVar[str] = "outputs"

    def __init__(self, images: Classification, latent: int = LATENT) -> None:
        """Hold the images of a data set, on its device, with noise for latents of `latent` values."""
        self.images, self.latent = images, latent
        self.name, self.device = f"generation of {images.name}", images.device
        self.shape = images.input_shape
        self.pixels = int(torch.Size(self.shape).numel())
        self.input_shape, self.num_outputs = (self.pixels + latent,), self.pixels + 2 * latent
        self.split_hash = hashlib.sha256(f"generation {latent} {images.split_hash}".encode()).hexdigest()
        self._noise = {
            split: torch.randn(images.size(split), latent, generator=generator(number, Stream.LATENT_NOISE)).to(
                self.device
            )
            for number, split in enumerate(SPLITS)
        }

    @property
    def arch_settings(self) -> dict[str, int]:
        """Channels and side of images, and the size of latents."""
        return {"channels": self.shape[0], "image_size": self.shape[1], "latent": self.latent}

    @property
    def augments(self) -> bool:
        """Noise is drawn anew in training."""
        return True

    def size(self, split: str) -> int:
        """Return the number of images of a split."""
        return self.images.size(split)

    def inputs(self, split: str, index: Tensor | slice, seeds: Int64[Tensor, " M"] | None = None) -> Tensor:
        """Return normalised images with their noise (B, P + E), or (M, B, P + E) for an index (M, B)."""
        return self.with_noise(split, index, self._noise[split][index])

    def with_noise(self, split: str, index: Tensor | slice, noise: Float[Tensor, "*M B E"]) -> Float[Tensor, "*M B D"]:
        """Return normalised images (*M, B, P) of a split with noise of one's own; D = P + E."""
        return torch.cat([self.images.inputs(split, index).flatten(-3), noise], -1)

    def targets(self, split: str, index: Tensor | slice, seeds: Int64[Tensor, " M"] | None = None) -> Tensor:
        """Return pixels from 0 to 1 (B, P), or (M, B, P) for an index (M, B)."""
        return self.images.split(split).images[index].flatten(-3).float() / 255

    def draw_augmentation(self, count: int, random: torch.Generator) -> Shaped[Tensor, "K N"]:
        """Draw the noise of an epoch (E, count)."""
        return torch.randn(self.latent, count, generator=random)

    def augmented(self, index: Tensor, draws: Tensor, seeds: Tensor) -> Tensor:
        """Return normalised training images with noise `draws` (M, E, B): (M, B, P + E)."""
        return self.with_noise("train", index, draws.transpose(1, 2))

    def random_inputs(self, index: Tensor, random: torch.Generator) -> Tensor:
        """Return normalised training images with noise drawn now (B, P + E)."""
        noise = torch.randn(len(index), self.latent, generator=random, device=random.device)
        return self.with_noise("train", index, noise.to(self.device))

    def parts(self, outputs: Float[Tensor, "*M B C"]) -> tuple[Tensor, Tensor, Tensor]:
        """Return logits of pixels (*M, B, P), mean and log-variance (*M, B, E)."""
        logits, mean, log_variance = outputs.split([self.pixels, self.latent, self.latent], -1)
        return logits, mean, log_variance

    def bound(self, outputs: Float[Tensor, "*M B C"], targets: Float[Tensor, "... B P"]) -> Float[Tensor, "*M B"]:
        """Return the evidence lower bound of each image, in nats: see `netspace.losses.evidence_bound`."""
        return evidence_bound(*self.parts(outputs), targets)

    def score(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Return exp(ELBO / P), the ELBO averaged over all images that are given."""
        return (self.bound(outputs, targets).double().mean(-1) / self.pixels).exp()

    @torch.no_grad()
    def evaluate(
        self,
        networks: Callable[[Tensor], Tensor],
        split: str,
        seeds: Int64[Tensor, " M"],
        limit: int | None = None,
        targets: Tensor | None = None,
        inputs: Tensor | None = None,
    ) -> Float[Tensor, " M"]:
        """Return exp(ELBO / P) of networks over a split, or its first `limit` images: see `Task.evaluate`."""
        batches = self.outputs_and_targets(networks, split, seeds, limit, targets, inputs)
        bounds = [self.bound(outputs, truth).double() for outputs, truth in batches]
        return (torch.cat(bounds, -1).mean(-1) / self.pixels).exp()

    def measures(self, outputs: Tensor, targets: Tensor) -> dict[str, Tensor]:
        """Return `elbo` in nats, and `mse`, the mean squared error of reconstructed pixels, of each network."""
        error = (self.parts(outputs)[0].sigmoid() - targets).double().square().mean((-2, -1))
        return {"elbo": self.bound(outputs, targets).double().mean(-1), "mse": error}

    @torch.no_grad()
    def assess(
        self,
        networks: Callable[[Tensor], Tensor],
        split: str,
        seeds: Int64[Tensor, " M"],
        limit: int | None = None,
        samples: int = SAMPLES,
    ) -> dict[str, Float[Tensor, " M"]]:
        """Return the score of networks over a split or its first `limit` images, and further measures.

        They are `elbo`, and `nll`, the negative log-likelihood by importance weighting with so many `samples`, both in nats for
        an image; and `mse` of reconstructions, pixels from 0 to 1.
        """
        batches = self.outputs_and_targets(networks, split, seeds, limit)
        parts = [(self.measures(outputs, truth), outputs.shape[1]) for outputs, truth in batches]
        count = sum(size for _, size in parts)
        elbo, mse = (
            torch.stack([each[name] * size for each, size in parts]).sum(0) / count for name in ("elbo", "mse")
        )
        nll = self._nll(networks, split, count, samples)
        return {self.score_name: (elbo / self.pixels).exp(), "elbo": elbo, "nll": nll, "mse": mse}

    def _nll(self, networks: Callable[[Tensor], Tensor], split: str, count: int, samples: int) -> Float[Tensor, " M"]:
        """Return the negative log-likelihood of networks for the first `count` images of a split, with its noise."""
        per_sample = []
        for sample in range(samples):
            random = generator(SPLITS.index(split), Stream.IMPORTANCE_NOISE, sample)
            noise = torch.randn(self.size(split), self.latent, generator=random).to(self.device)
            weights = []
            for start in range(0, count, CHUNK):
                part = slice(start, min(start + CHUNK, count))
                outputs = networks(self.with_noise(split, part, noise[part]))
                weights.append(self.log_weights(outputs, self.targets(split, part), noise[part]))
            per_sample.append(torch.cat(weights, -1))
        return metrics.importance_weighted_nll(torch.stack(per_sample, -2))

    def log_weights(
        self, outputs: Float[Tensor, "*M B C"], targets: Float[Tensor, "... B P"], noise: Float[Tensor, "B E"]
    ) -> Float[Tensor, "*M B"]:
        """Return log p(x | z) + log p(z) - log q(z | x) of images x and the latents z that `noise` gave, in float64."""
        logits, mean, log_variance = self.parts(outputs)
        noise, mean, log_variance = noise.double(), mean.double(), log_variance.double()
        latents = mean + (0.5 * log_variance).exp() * noise
        of_latents = 0.5 * (noise.square() + log_variance - latents.square()).sum(-1)
        return losses.pixel_log_likelihood(logits, targets).double() + of_latents

    def training_loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Return the negative ELBO of an image, in nats: reconstruction and KL divergence of the latent."""
        return -self.bound(outputs, targets).mean()

    def behaviour_loss(
        self, predicted: Tensor, target: Tensor, temperature: float = 1.0, relative: bool = False
    ) -> Tensor:
        """Return how far predicted networks are from their targets for an image, in nats; there is no temperature."""
        return autoencoder_divergence(self.parts(predicted.float()), self.parts(target.float())).mean()

    def divergence(self, predicted: Tensor, target: Tensor) -> Tensor:
        """Return the behaviour loss of each network by itself, in float64."""
        return autoencoder_divergence(self.parts(predicted.double()), self.parts(target.double())).mean(-1)

    def agreement(self, first: Tensor, second: Tensor) -> Tensor:
        """Return the concordance of reconstructed pixels."""
        return metrics.concordance(self.parts(first)[0].sigmoid(), self.parts(second)[0].sigmoid())

    @torch.no_grad()
    def pictures(
        self, network: Callable[[Tensor], Tensor], split: str, index: Int64[Tensor, " S"]
    ) -> dict[str, UInt8[np.ndarray, "S h w 3"]]:
        """Return `original`, `reconstruction` at the mean latent and, of a network with `decode`, `sample` from the prior."""
        index = index.to(self.device)
        still = torch.zeros(len(index), self.latent, device=self.device)
        rows = {
            "original": self.targets(split, index),
            "reconstruction": self.parts(network(self.with_noise(split, index, still)))[0].sigmoid(),
        }
        if hasattr(network, "decode"):
            random = generator(SPLITS.index(split), Stream.LATENT_SAMPLES)
            latents = torch.randn(len(index), self.latent, generator=random).to(self.device)
            rows["sample"] = network.decode(latents).flatten(1).sigmoid()
        return {name: self._image(row) for name, row in rows.items()}

    def _image(self, pixels: Float[Tensor, "S P"]) -> UInt8[np.ndarray, "S h w 3"]:
        images = (255 * pixels).round().to(torch.uint8).view(-1, *self.shape)
        return with_channels(images, 3).permute(0, 2, 3, 1).cpu().numpy()

    def normalisation(self) -> dict[str, list[float]]:
        """Return mean and standard deviation of each channel, pixels in 0..1."""
        return self.images.normalisation()
