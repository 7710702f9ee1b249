"""Whether a compressed file is smaller than the network that it stands for, told before the fit and after it."""

from __future__ import annotations

from torch import Tensor

from netspace.compressed import FLOAT, Compressed, bytes_of
from netspace.models.inr import PredictorConfig, parameter_count
from netspace.ordering.arranging import paper_bits

NARROWEST = 4  # width of a predictor that is advised


def larger(compressed: Compressed, state: dict[str, Tensor]) -> str | None:
    """A sentence where the file will be larger than the network's weights, with a predictor that is small enough; else None."""
    original, kernels = bytes_of(state), compressed.kernels
    represented = bytes_of({layer.name: state[layer.name] for layer in kernels.layers})
    values = parameter_count(compressed.predictor.config, kernels.side**2)
    orders = sum(paper_bits(layer.grid(kernels.side), compressed.kind) for layer in kernels.layers) / 8
    expected = values * FLOAT // 8 + round(orders) + bytes_of(compressed.rest)
    expected += sum(norm.numel() * norm.element_size() for norm in compressed.norms or ())
    if expected <= original:
        return None
    hidden = _hidden(compressed.predictor.config, kernels.side**2, represented * 8 // (2 * FLOAT))
    advice = (
        f"even a predictor of width {NARROWEST} is larger than half of what it represents: keep this network as it is"
        if hidden is None
        else f"--set predictor.hidden={hidden} gives a predictor of half the bytes that it represents"
    )
    return (
        f"the compressed file will take {expected:,} bytes and the network's weights take {original:,} "
        f"({expected / original:.1f} times as many), because the predictor has {values:,} values for "
        f"{kernels.parameters:,} represented: {advice}"
    )


def _hidden(config: PredictorConfig, outputs: int, most: int) -> int | None:
    """The largest width, `NARROWEST` or more, with at most `most` values, if there is one below the width of `config`."""
    able = [
        hidden
        for hidden in range(NARROWEST, config.hidden)
        if parameter_count(config.model_copy(update={"hidden": hidden}), outputs) <= most
    ]
    return max(able, default=None)
