"""Networks that are signals: from coordinates (B, inputs) to values (B, outputs), such as signed distances.

`siren` has sines between its layers (Sitzmann et al. 2020); that of NetSpace's shapes, 3-256-256-1 at frequency 30, has
67,073 parameters. `fourier_mlp` has ReLUs, and sees sines and cosines of its coordinates (Tancik et al. 2020).
"""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Callable
from itertools import pairwise

import torch
from torch import Tensor, nn

from netspace.archs.convnets import scaled
from netspace.errors import UsageError

HIDDEN = 256  # outputs of each hidden layer at width 1
LARGEST_DEPTH, LARGEST_FREQUENCIES = 32, 16


class Sine(nn.Module):
    """sin(frequency * x), for any shape."""

    def __init__(self, frequency: float) -> None:
        super().__init__()
        self.frequency = frequency

    def forward(self, x: Tensor) -> Tensor:
        """Return sines in the shape of `x`."""
        return torch.sin(self.frequency * x)


class Fourier(nn.Module):
    """Coordinates x (B, D) and the sines and cosines of 2^k pi x for k < frequencies: (B, D + 2 * D * frequencies)."""

    def __init__(self, frequencies: int) -> None:
        super().__init__()
        self.frequencies = frequencies

    def forward(self, x: Tensor) -> Tensor:
        """Return the features (B, D + 2 * D * frequencies) of coordinates (B, D)."""
        angles = torch.cat([x * (math.pi * 2**k) for k in range(self.frequencies)], -1)
        return torch.cat([x, torch.sin(angles), torch.cos(angles)], -1)


def siren(
    inputs: int = 3, outputs: int = 1, width: float = 1.0, depth: int = 2, frequency: float = 30.0
) -> nn.Sequential:
    """Return a network of `depth` hidden layers of 256 * `width` sines, initialised as Sitzmann et al. (2020) say.

    Coordinates are meant to be in [-1, 1]. Raises `UsageError` for settings out of range.

    >>> sum(value.numel() for value in siren().parameters())
    67073
    """
    _check("siren", inputs, outputs, width, depth)
    if not _number(frequency) or not 0 < frequency < math.inf:
        raise UsageError(f"siren needs a frequency above 0, not {frequency!r}.")
    net = _layers(inputs, outputs, width, depth, lambda: Sine(float(frequency)))
    with torch.no_grad():
        for number, layer in enumerate(each for each in net if isinstance(each, nn.Linear)):
            fan_in = layer.in_features
            bound = 1 / fan_in if number == 0 else math.sqrt(6 / fan_in) / frequency
            layer.weight.uniform_(-bound, bound)
    return net


def fourier_mlp(
    inputs: int = 3, outputs: int = 1, width: float = 1.0, depth: int = 3, frequencies: int = 6
) -> nn.Sequential:
    """Return a network of `depth` hidden layers of 256 * `width` ReLUs behind `frequencies` octaves of sines and cosines.

    Raises `UsageError` for settings out of range.

    >>> fourier_mlp(inputs=2, outputs=3, width=0.25)(torch.zeros(5, 2)).shape
    torch.Size([5, 3])
    """
    _check("fourier_mlp", inputs, outputs, width, depth)
    if not _whole(frequencies) or not 1 <= frequencies <= LARGEST_FREQUENCIES:
        raise UsageError(f"fourier_mlp needs frequencies from 1 to {LARGEST_FREQUENCIES}, not {frequencies!r}.")
    layers = _layers(inputs * (1 + 2 * frequencies), outputs, width, depth, nn.ReLU)
    return nn.Sequential(OrderedDict([("features", Fourier(frequencies)), *layers.named_children()]))


def _layers(inputs: int, outputs: int, width: float, depth: int, activation: Callable[[], nn.Module]) -> nn.Sequential:
    """Return linear layers, with an activation behind all but the last."""
    sizes = [inputs, *[scaled(HIDDEN, width)] * depth, outputs]
    layers = OrderedDict[str, nn.Module]()
    for number, (fan_in, fan_out) in enumerate(pairwise(sizes), 1):
        layers[f"linear{number}"] = nn.Linear(fan_in, fan_out)
        if number <= depth:
            layers[f"activation{number}"] = activation()
    return nn.Sequential(layers)


def _check(arch: str, inputs: int, outputs: int, width: float, depth: int) -> None:
    """Raise `UsageError` if a setting that both have is out of range."""
    for name, value, largest in (("inputs", inputs, 4096), ("outputs", outputs, 4096), ("depth", depth, LARGEST_DEPTH)):
        if not _whole(value) or not 1 <= value <= largest:
            raise UsageError(f"{arch} needs {name} to be a whole number from 1 to {largest}, not {value!r}.")
    if not _number(width) or not 0 < width <= 64:
        raise UsageError(f"{arch} needs a width above 0 and at most 64, not {width!r}.")


def _whole(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
