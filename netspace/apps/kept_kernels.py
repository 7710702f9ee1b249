"""A few kernels of a compressed network beside the original's, kept for its report.

Axes: N kernels, h w their sides.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from torch import Tensor

from netspace.kernels import Kernels
from netspace.runtime import write_json

KEPT = 64  # kernels at most: as many as can be told apart on a telephone


def keep_kernels(
    folder: Path, kernels: Kernels, original: Mapping[str, Tensor], reconstructed: Mapping[str, Tensor]
) -> None:
    """Writes `kernels.json`: the first kernels (N, h, w) of one layer in both state dicts, filter by filter.

    The layer is the median by the relative error of its weights, the better one of two: neither the best nor the worst.
    """
    errors = []
    for layer in kernels.layers:
        wanted, found = original[layer.name].float(), reconstructed[layer.name].float()
        errors.append(float((found - wanted).norm() / wanted.norm().clamp_min(1e-12)))
    place = sorted(range(len(errors)), key=errors.__getitem__)[(len(errors) - 1) // 2]
    layer, start = kernels.layers[place], sum(kernels.counts[:place])
    rows, columns = layer.window(kernels.side)
    told = {
        "layer": layer.name,
        "layers": len(errors),
        "relative_error": errors[place],
        "count": kernels.counts[place],
    }
    for key, state in (("original", original), ("reconstructed", reconstructed)):
        chosen = kernels.gather(state)[start : start + min(KEPT, kernels.counts[place]), rows, columns]
        told[key] = chosen.tolist()
    write_json(folder / "kernels.json", told)
