"""`netspace interpolate`: networks along the line between two latents (NetSpace, Fig. 3 b and d).

Axes: S steps along the line, P parameters, E latent size.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import torch

from netspace.apps.networks import Named, resolve, write_network, zoo_of
from netspace.data import TaskData
from netspace.errors import UsageError
from netspace.family import Networks
from netspace.metrics import linear_r2, spearman
from netspace.runtime import write_json
from netspace.space import Space
from netspace.training.setting import task_of
from netspace.training.validation import accuracies


def interpolate(
    run: Path,
    start: str,
    end: str,
    steps: int = 11,
    save: Path | None = None,
    zoo_path: Path | None = None,
    device: str = "cpu",
) -> dict[str, Any]:
    """Accuracy on the test images along the latent line, beside the direct interpolation of weights.

    Between networks of different architectures, latents say of which each network is (NetSpace, Fig. 5). `save` is a folder
    for the decoded networks, as safetensors. `weight_accuracy` is None where an end has no weights (a latent file) or the
    ends' weights cannot be mixed (two architectures). `linear_r2` is that of a straight line through the accuracies;
    `end_differences` are decoded minus target accuracy at start and end, None at a latent file. The figures are kept in the
    run's `interpolations/`.
    """
    if steps < 2:
        raise UsageError(f"an interpolation has at least 2 steps (its ends), not {steps}")
    space = Space.load(run, device)
    with zoo_of(run, zoo_path) as zoo:
        first, last = resolve(start, space, zoo), resolve(end, space, zoo)
        task = task_of(zoo, space.device)
    gamma = torch.linspace(0, 1, steps, device=space.device)
    networks = space.decode_all(torch.lerp(first.latent, last.latent, gamma[:, None]))
    found = accuracies(networks, task, "test")
    direct = None
    if first.flat is not None and last.flat is not None and first.class_id == last.class_id:
        mixed = torch.lerp(first.flat, last.flat, gamma[:, None])  # (S, P)
        direct = accuracies(Networks.of_class(space.family, first.class_id, mixed), task, "test")
    factors = gamma.cpu().numpy()
    figures: dict[str, Any] = {
        "run": str(run),
        "from": first.name,
        "to": last.name,
        "gamma": [round(float(value), 6) for value in factors],
        "arch": [space.family[int(class_id)].id for class_id in networks.class_ids],
        "latent_accuracy": found.tolist(),
        "weight_accuracy": None if direct is None else direct.tolist(),
        "spearman": _number(spearman(factors, found)),
        "weight_spearman": None if direct is None else _number(spearman(factors, direct)),
        "linear_r2": _number(linear_r2(factors, found)),
        "weight_linear_r2": None if direct is None else _number(linear_r2(factors, direct)),
        "end_differences": [
            None if target is None else float(decoded) - target
            for decoded, target in zip(found[[0, -1]], _targets(space, (first, last), task), strict=True)
        ],
    }
    if save is not None:
        names = [save / f"{place:02d}-gamma-{value:.3f}.safetensors" for place, value in enumerate(factors)]
        for place, (name, value, right) in enumerate(zip(names, factors, found, strict=True)):
            notes = {"gamma": f"{value:.6f}", "from": first.name, "to": last.name, "accuracy_test": f"{right:.6f}"}
            arch = space.family[int(networks.class_ids[place])]
            write_network(name, networks.flat(place), arch, **notes)
        figures["networks"] = [str(name) for name in names]
    write_json(run / "interpolations" / f"{_plain(first.name)}--{_plain(last.name)}.json", figures)
    return figures


def _targets(space: Space, ends: tuple[Named, Named], task: TaskData) -> list[float | None]:
    """Test accuracy of the networks that the ends were encoded from; None where only a latent was given."""
    return [
        None
        if end.flat is None
        else float(accuracies(Networks.of_class(space.family, end.class_id, end.flat[None]), task, "test")[0])
        for end in ends
    ]


def _plain(name: str) -> str:
    return re.sub(r"[^A-Za-z0-9.]+", "-", name).strip("-")


def _number(value: float) -> float | None:
    return None if np.isnan(value) else value
