"""What anyone could do without a decoder: answer with networks of the training split.

Axes: M members, P parameters, E latent size. Whatever has to be chosen is chosen on validation members.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from netspace.data import TaskData
from netspace.family import Networks
from netspace.metrics import nearest
from netspace.models.autoencoder import layer_spread
from netspace.prep import unpack
from netspace.runtime import generator
from netspace.space import Space
from netspace.store import Zoo
from netspace.training.setting import shown_rows
from netspace.training.validation import accuracies, answers

BANK = 4096  # training members that baselines and distances draw on, at most
NOISE_MEMBERS = 16  # validation members that choose among them
NOISES = (0.01, 0.03, 0.1, 0.3)  # in units of each layer's spread; the baseline's best on validation members is used


class Baselines:
    """The networks of one architecture that a space was shown, as answers to what it is asked."""

    def __init__(self, space: Space, zoo: Zoo, class_id: int) -> None:
        arch = space.family[class_id]
        self.space, self.class_id, self.parameters = space, class_id, arch.parameters
        self.group = zoo.group(arch.id)
        preps = self.group.read(shown_rows(space.recipe, zoo, self.group)[:BANK].numpy()).to(space.device)
        self.bank = unpack(preps, arch.parameters)
        self.latents = space.encode_preps(preps, arch.id)
        self.spread = unpack(layer_spread(preps, arch.spec), arch.parameters)

    def answers(self, target: Tensor, latents: Tensor, task: TaskData) -> tuple[dict[str, Tensor], float]:
        """Test logits (M, N, C) of each baseline for networks (M, P) with latents (M, E), and the noise that was used.

        nearest: the training network with the nearest weights; nearest_latent: the one with the nearest latent;
        noise: the former plus Gaussian noise; average: the mean of all training networks.
        """
        by_weights, by_latent = nearest(target, self.bank), nearest(latents, self.latents)
        used, places = torch.cat([by_weights, by_latent]).unique(return_inverse=True)  # each runs once
        logits = self._answers(self.bank[used], task)
        first, second = places.cpu().split(len(target))
        scale = self._noise_scale(task)
        average = self._answers(self.bank.mean(0, keepdim=True), task)
        found = {
            "nearest": logits[first],
            "nearest_latent": logits[second],
            "average": average.expand(len(target), *average.shape[1:]),
            "noise": self._answers(self._noisy(self.bank[by_weights], scale), task),
        }
        return found, scale

    def _answers(self, flat: Tensor, task: TaskData) -> Tensor:
        return answers(Networks.of_class(self.space.family, self.class_id, flat), task, "test")

    def _accuracies(self, flat: Tensor, task: TaskData) -> np.ndarray:
        return accuracies(Networks.of_class(self.space.family, self.class_id, flat), task, "val")

    def _noise_scale(self, task: TaskData) -> float:
        """The noise that does best (mean |difference| of accuracy) on validation members and images."""
        rows = self.group.rows("val")[:NOISE_MEMBERS]
        if not len(rows):
            return NOISES[0]
        target = unpack(self.group.read(rows).to(self.bank.device), self.parameters)
        near = self.bank[nearest(target, self.bank)]
        own = self._accuracies(target, task)
        noisy = [self._accuracies(self._noisy(near, scale), task) for scale in NOISES]
        return NOISES[int(np.argmin([np.abs(found - own).mean() for found in noisy]))]

    def _noisy(self, flat: Tensor, scale: float) -> Tensor:
        noise = torch.randn(flat.shape, generator=generator(0, 11)).to(flat.device)
        return flat + scale * self.spread * noise
