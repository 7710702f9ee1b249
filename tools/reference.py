"""The plain implementation with which `tools/bench.py` and its tests compare netspace.

One network at a time, float32, `torch.optim.Adam`, a DataLoader: how most people would write it, with no trick and
no handicap. Axes: M members, B images, H W of a PRep, E latent size.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call
from torch.utils.data import DataLoader


def train_epoch(
    network: nn.Module,
    optimizer: torch.optim.Optimizer,
    loader: DataLoader[tuple[Tensor, ...]],
    device: torch.device,
) -> None:
    """Train one network for one pass over the loader's images and labels."""
    network.train()
    for images, labels in loader:
        train_step(network, optimizer, images.to(device, non_blocking=True), labels.to(device, non_blocking=True))


def train_step(network: nn.Module, optimizer: torch.optim.Optimizer, images: Tensor, labels: Tensor) -> Tensor:
    """Take one step on images (B, C, H, W) and labels (B,); return the loss."""
    optimizer.zero_grad()
    loss = F.cross_entropy(network(images), labels)
    loss.backward()
    optimizer.step()
    return loss.detach()


def regression_step(network: nn.Module, optimizer: torch.optim.Optimizer, inputs: Tensor, targets: Tensor) -> Tensor:
    """Take one step on inputs (B, ...) and targets (B, C) by the mean squared error; return the loss."""
    optimizer.zero_grad()
    loss = F.mse_loss(network(inputs), targets)
    loss.backward()
    optimizer.step()
    return loss.detach()


class ConvEncoder(nn.Module):
    """The paper's encoder (NetSpace, Fig. 1); its weights have the names of `netspace.models.encoders.ConvEncoder`."""

    def __init__(self, latent: int, size: tuple[int, int]) -> None:
        super().__init__()
        h = latent // 32
        self.along = nn.Sequential(
            nn.Conv2d(1, h, (1, 3), stride=(1, 2), padding=(0, 1)),
            nn.LeakyReLU(),
            nn.Conv2d(h, 2 * h, (1, 3), stride=(1, 2), padding=(0, 1)),
            nn.LeakyReLU(),
        )
        self.across = nn.Sequential(
            nn.Conv2d(2 * h, 4 * h, (3, 1), padding=(1, 0)),
            nn.LeakyReLU(),
            nn.Conv2d(4 * h, latent, (3, 1), padding=(1, 0)),
            nn.LeakyReLU(),
        )
        self.register_buffer("spread", torch.ones(size))

    def forward(self, preps: Tensor) -> Tensor:
        x = self.along((preps / self.spread).unsqueeze(1))
        x = self.across(x.max(dim=3, keepdim=True).values)
        return x.max(dim=2).values.squeeze(2)


class ProbeEncoder(nn.Module):
    """Every network's logits for learnt inputs, read by two linear layers; names as in `netspace.models.encoders`."""

    def __init__(
        self, latent: int, hidden: int, probes: int, classes: int, network: nn.Module, input_shape: Sequence[int]
    ) -> None:
        super().__init__()
        self._network = (network,)  # in a tuple: its parameters are not this module's
        self.probes = nn.Parameter(torch.zeros(probes, *input_shape))
        self.register_buffer("mean", torch.zeros(probes * classes))
        self.register_buffer("spread", torch.ones(()))
        self.read = nn.Sequential(nn.Linear(probes * classes, hidden), nn.LeakyReLU(), nn.Linear(hidden, latent))

    def forward(self, preps: Tensor, network: nn.Module | None = None) -> Tensor:
        network = network or self._network[0]
        outputs = []
        for prep in preps:
            logits = functional_call(network, weights_of(prep, network), (self.probes,))
            outputs.append((logits - logits.mean(dim=1, keepdim=True)).flatten())
        return self.read((torch.stack(outputs) - self.mean) / self.spread)


class ConvDecoder(nn.Module):
    """The paper's decoder (NetSpace, Fig. 1); its weights have the names of `netspace.models.decoders.ConvDecoder`."""

    def __init__(self, latent: int, size: tuple[int, int], slope: float) -> None:
        super().__init__()
        rows, width = size
        self.latent, self.size = latent, size
        self.deepen = nn.Conv2d(1, 256 * rows, 3, stride=2, padding=1)
        self.widen = nn.Conv2d(128, width // 8, 3, stride=2, padding=1)
        self.fill = nn.Conv2d(latent // 8, 256, 3, stride=2, padding=1)
        self.emit = nn.Conv2d(256, 32, 3, padding=1)
        self.activation = nn.LeakyReLU(slope)
        self.scale = nn.Parameter(torch.zeros(size))
        self.bias = nn.Parameter(torch.zeros(size))

    def forward(self, latents: Tensor) -> Tensor:
        rows, width = self.size
        side = round(self.latent**0.5)
        x = self.activation(self.deepen(latents.reshape(-1, 1, side, side)))
        x = self.activation(self.widen(x.reshape(-1, 128, rows, self.latent // 2)))
        x = self.activation(self.fill(x.reshape(-1, self.latent // 8, rows // 2, width // 4)))
        x = self.emit(x.reshape(-1, 256, rows // 4, width // 8))
        return x.reshape(-1, rows, width) * self.scale + self.bias


def weights_of(prep: Tensor, network: nn.Module) -> dict[str, Tensor]:
    """Return the weights of a PRep (H, W) for `network`, by name; gradients flow through."""
    named = dict(network.named_parameters())
    sizes = [value.numel() for value in named.values()]
    pieces = prep.flatten()[: sum(sizes)].split(sizes)
    return {name: piece.view(value.shape) for (name, value), piece in zip(named.items(), pieces, strict=True)}


def space_loss(
    encoder: nn.Module, decoder: nn.Module, network: nn.Module, preps: Tensor, images: Tensor, temperature: float
) -> Tensor:
    """Return NetSpace's Eq. 1 for PReps (M, H, W) and images (B, ...), one network after another."""
    predicted = decoder(encoder(preps))
    loss = torch.zeros((), device=preps.device)
    for target, prep in zip(preps, predicted, strict=True):
        with torch.no_grad():
            teacher = functional_call(network, weights_of(target, network), (images,))
        student = functional_call(network, weights_of(prep, network), (images,))
        divergence = F.kl_div(
            F.log_softmax(student / temperature, dim=1), F.softmax(teacher / temperature, dim=1), reduction="batchmean"
        )
        loss = loss + divergence * temperature**2
    return loss / len(preps)


def multi_loss(
    encoder: nn.Module,
    decoder: nn.Module,
    head: nn.Module,
    networks: Sequence[nn.Module],
    teacher: Callable[[Tensor], Tensor],
    preps: Sequence[tuple[int, Tensor]],
    points: Sequence[tuple[int, int, int, float]],
    images: Tensor,
    labels: Tensor,
    temperature: float,
    alpha: float,
) -> Tensor:
    """Return NetSpace's Eq. 5, 6 and 11 for networks (ClassId, PRep (H, W)) and points (ClassId, row, row, gamma) between two."""
    encodings = []
    for class_id, prep in preps:
        settings = (networks[class_id],) if isinstance(encoder, ProbeEncoder) else ()
        encodings.append((class_id, encoder(prep[None], *settings)))
    between = [
        (class_id, (1 - gamma) * encodings[first][1] + gamma * encodings[second][1])
        for class_id, first, second, gamma in points
    ]
    loss = torch.zeros((), device=images.device)
    for class_id, latent in [*encodings, *between]:
        with torch.no_grad():
            teacher_logits = teacher(images)
        network = networks[class_id]
        logits = functional_call(network, weights_of(decoder(latent)[0], network), (images,))
        divergence = F.kl_div(
            F.log_softmax(logits / temperature, dim=1),
            F.softmax(teacher_logits / temperature, dim=1),
            reduction="batchmean",
        )
        loss = loss + alpha * divergence * temperature**2 + (1 - alpha) * F.cross_entropy(logits, labels)
        loss = loss + F.cross_entropy(head(latent), torch.tensor([class_id], device=images.device))
    return loss / len(preps)
