"""The auto-decoder of DeepSDF (Park et al. 2019): one network for all shapes, with a learnt latent for each of them.

Axes: N shapes that it is trained on, M shapes, B points of each, E latent size, H outputs of each hidden layer.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

INITIAL_LATENT = 0.01  # standard deviation of fresh latents (DeepSDF's code)


class AutoDecoder(nn.Module):
    """Maps a latent and a point to the value of a field there, such as a signed distance.

    ReLU layers, of which the first and the one in the middle see latent and point (DeepSDF, Suppl. A: a skip connection).
    What a layer sees of a latent is computed once for all points of a shape. Unlike DeepSDF's, the output is not bounded by a
    tanh, since distances are compared everywhere in the cube, and there is no dropout.
    """

    def __init__(
        self, shapes: int, latent: int, hidden: int, layers: int = 4, inputs: int = 3, outputs: int = 1
    ) -> None:
        """Make a decoder with `layers` hidden layers and latents of `shapes` shapes."""
        super().__init__()
        self.latents = nn.Parameter(INITIAL_LATENT * torch.randn(shapes, latent))
        self.skip = layers // 2
        seen = latent + inputs
        sizes = [seen, *(hidden + (seen if number == self.skip else 0) for number in range(1, layers))]
        self.hidden = nn.Sequential(*(nn.Linear(size, hidden) for size in sizes))
        self.last = nn.Linear(hidden, outputs)
        for layer in self._layers():
            nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
            nn.init.zeros_(layer.bias)

    def _layers(self) -> list[nn.Linear]:
        return [each for each in (*self.hidden, self.last) if isinstance(each, nn.Linear)]

    def elementwise(self) -> list[nn.Parameter]:
        """Return the parameters with a learning rate of their own: the latents."""
        return [self.latents]

    def not_matrices(self) -> list[nn.Parameter]:
        """Return the parameters that Muon must not train: the latents, which are not a map."""
        return [self.latents]

    def forward(self, latents: Float[Tensor, "M E"], points: Float[Tensor, "*M B D"]) -> Float[Tensor, "M B C"]:
        """Return the fields' values at points (M, B, D) of each shape, or (B, D) of all shapes."""
        values: Tensor | None = None
        *hidden, last = self._layers()
        for number, layer in enumerate(hidden):
            if number in (0, self.skip):
                size = 0 if values is None else values.shape[-1]
                of_values, of_latents, of_points = layer.weight.split([size, latents.shape[1], points.shape[-1]], dim=1)
                seen = F.linear(latents, of_latents, layer.bias)[:, None] + F.linear(points, of_points)
                values = F.relu(seen if values is None else seen + F.linear(values, of_values))
            else:
                values = F.relu(layer(values))
        return last(values)


def count_parameters(latent: int, hidden: int, layers: int = 4, inputs: int = 3, outputs: int = 1) -> int:
    """Return the number of parameters of an `AutoDecoder`, without its latents.

    >>> model = AutoDecoder(5, 16, 32)
    >>> count_parameters(16, 32) == sum(value.numel() for value in model.parameters()) - model.latents.numel()
    True
    """
    entries = 2 * (latent + inputs) * hidden  # into the first layer and the one in the middle
    return entries + (layers - 1) * hidden**2 + layers * hidden + (hidden + 1) * outputs


def hidden_size(parameters: int, latent: int, layers: int = 4, inputs: int = 3, outputs: int = 1) -> int:
    """Return the hidden layers' size with which an `AutoDecoder` has nearly as many parameters as asked for, at least 1.

    >>> hidden_size(count_parameters(16, 32), 16)
    32
    """
    low, high = 1, 2
    while count_parameters(latent, high, layers, inputs, outputs) < parameters:
        low, high = high, 2 * high
    while high - low > 1:
        middle = (low + high) // 2
        below = count_parameters(latent, middle, layers, inputs, outputs) <= parameters
        low, high = (middle, high) if below else (low, middle)
    return min((low, high), key=lambda size: abs(count_parameters(latent, size, layers, inputs, outputs) - parameters))
