"""What lies in the folder of a compressed network, read once, checked, and never written.

Axes: S records of the fit, R of its loss, L layers, N kernels, h w their sides. `fit` writes fit.json and kernels.json; analysis.json, prune.json and quantise-BITS.json (-alone: beside no original) are of
commands of their own, and None or empty where they were not run.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from netspace.errors import NetspaceError
from netspace.io import read_text, without_seal
from netspace.report.course import NOT_LOSSES
from netspace.report.drawing import named
from netspace.report.reading import mapping_of, numbers_of, part
from netspace.run_folder import is_run, read_metrics

Columns = dict[str, np.ndarray]  # by name, all of one length


@dataclass(frozen=True)
class Analysis:
    """What `netspace compress analyse` tells; what needs data is empty where there was none."""

    layers: list[str]
    ratios: Columns  # 'original' and 'reconstructed', (L,) each
    alike: Columns  # CKA with the original: 'reconstructed' and 'random', (L,) each
    low_pass: Columns  # 'amount', 'accuracy', 'singular_ratio'
    scale_small: Columns  # likewise
    gaps: Mapping[str, Any]  # of both networks


@dataclass(frozen=True)
class Kept:
    """Kernels of one layer, the median of `layers` by relative error."""

    layer: str
    layers: int
    relative_error: float
    count: int  # of the layer's kernels
    original: np.ndarray  # (N, h, w): the first of them
    reconstructed: np.ndarray  # likewise


@dataclass(frozen=True)
class Fitted:
    """The folder's content."""

    path: Path
    config: str  # the text of config.yaml; empty if there is none
    network: str | None  # hash of the original
    figures: Mapping[str, Any]  # of fit.json
    course: Columns  # 'stage', 'step', 'relative_error', 'accuracy_val', (S,) each
    losses: Columns  # 'stage', 'step' and the terms of the loss, (R,) each, NaN where a stage has none
    kernels: Kept | None
    analysis: Analysis | None
    pruning: Mapping[str, Columns]  # 'predictor' and 'original': 'share', 'accuracy', 'relative_error'
    quantised: Mapping[int, Mapping[str, Any]]  # figures by bits

    @property
    def name(self) -> str:
        return self.path.resolve().name


def is_fit(path: Path) -> bool:
    """Whether `netspace compress fit` wrote, or began, this folder."""
    began = (path / "network.json").is_file() and (path / "config.yaml").is_file()
    return not is_run(path) and (began or (path / "fit.json").is_file())


def collect(path: Path) -> Fitted:
    """Reads a folder for which `is_fit` holds. Raises `NetspaceError` if its fit is not done, or a file is broken."""
    file, config, network = (path / name for name in ("fit.json", "config.yaml", "network.json"))
    if not file.is_file():
        raise NetspaceError(
            f"{path} holds no results to report: its fit is not done; go on with it (`netspace compress fit MODEL --out {path} "
            "--resume`)"
        )
    figures = mapping_of(file)
    names = ("stage", "step", "relative_error", "accuracy_val")
    both = {bits: [path / f"quantise-{bits}{end}.json" for end in ("", "-alone")] for bits in (8, 4)}
    quantised = {bits: next((file for file in files if file.is_file()), None) for bits, files in both.items()}
    told = mapping_of(network).get("hash") if network.is_file() else None
    return Fitted(
        path,
        without_seal(read_text(config)) if config.is_file() else "",
        None if told is None else str(told),
        figures,
        _columns(figures, "curve", names, file, "compress fit"),
        _losses(path / "metrics.jsonl"),
        _kernels(path / "kernels.json"),
        _analysis(path / "analysis.json"),
        _pruning(path / "prune.json"),
        {bits: mapping_of(found) for bits, found in quantised.items() if found is not None},
    )


def _losses(file: Path) -> Columns:
    rows = [{"stage": 0, **record} for record in read_metrics(file) if "rate" in record]
    terms = [name for name in named(rows) if name not in NOT_LOSSES]
    return _columns({"losses": rows}, "losses", ("stage", "step", *terms), file, "compress fit")


def _kernels(file: Path) -> Kept | None:
    if not file.is_file():
        return None
    raw = mapping_of(file)
    try:
        found = [np.array(raw[key], dtype=np.float64) for key in ("original", "reconstructed")]
        kept = Kept(
            str(raw["layer"]), int(raw["layers"]), float(raw["relative_error"]), int(raw["count"]), found[0], found[1]
        )
        if found[0].shape != found[1].shape or found[0].ndim != 3 or not found[0].size:
            raise ValueError("their shapes differ")
    except (KeyError, TypeError, ValueError):
        raise NetspaceError(
            f"{file} was expected to hold kernels of a layer in both networks: run `netspace compress analyse` again"
        ) from None
    return kept


def _analysis(file: Path) -> Analysis | None:
    if not file.is_file():
        return None
    raw = mapping_of(file)
    layers = [str(name) for name in raw.get("layers") or []]
    ratios = _by_layer(raw, "singular_ratio", ("original", "reconstructed"), len(layers), file)
    alike = _by_layer(raw, "cka", ("reconstructed", "random"), len(layers), file)
    names = ("amount", "accuracy", "singular_ratio")
    low, small = (_columns(raw, name, names, file, "compress analyse") for name in ("low_pass", "scale_small"))
    return Analysis(layers, ratios, alike, low, small, part(raw, "generalisation"))


def _by_layer(raw: Mapping[str, Any], name: str, keys: Sequence[str], count: int, file: Path) -> Columns:
    """One value for each layer under each key; nothing where the part is not there."""
    told = part(raw, name)
    found = {key: numbers_of(told, key, file) for key in keys} if told else {}
    if any(len(values) != count for values in found.values()):
        raise NetspaceError(
            f"{file} was expected to hold one {name} for each of {count} layers: run `netspace compress analyse` again"
        )
    return found


def _pruning(file: Path) -> dict[str, Columns]:
    if not file.is_file():
        return {}
    raw, names = mapping_of(file), ("share", "accuracy", "relative_error")
    return {key: _columns(raw, key, names, file, "compress prune") for key in ("predictor", "original") if raw.get(key)}


def _columns(raw: Mapping[str, Any], name: str, keys: Sequence[str], file: Path, command: str) -> Columns:
    """A list of records as one array for each key, NaN where a record lacks it."""
    rows = raw.get(name) or []
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        raise NetspaceError(f"{file}: {name!r} was expected to be a list of records: run `netspace {command}` again")
    return {key: numbers_of({key: [row.get(key) for row in rows]}, key, file) for key in keys}
