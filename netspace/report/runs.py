"""The content of a run folder, or of the folder of a compressed network, read once and never written.

Axes: M members, E latent size, H W of a PRep, A architectures by ClassId, S points of a line. Neither zoo nor data is
read. A missing part is None or empty; a broken one raises `NetspaceError` with the file's name.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import Field
from typing_extensions import TypedDict

from netspace.errors import NetspaceError, first_line
from netspace.io import Record, read_json, read_tensors, read_text, read_yaml, without_seal
from netspace.report.line_data import Line, chosen_line
from netspace.report.shapes import Shown, read_shown
from netspace.results import Score
from netspace.results.budget import BudgetFit
from netspace.results.compressed import (
    ActivationMaps,
    Analysis,
    FitResult,
    KernelSamples,
    NetworkMark,
    Pruning,
    Quantisation,
)
from netspace.results.lines import Interpolation
from netspace.results.spaces import Optimization, Sampling, SavedEvaluation
from netspace.run_folder import FIT, RunFolder, is_run, read_metrics

SPLITS = ("test", "val", "train")  # in the order of the page
MAX_LINES, MAX_SHAPE_LINES = 6, 2  # lines, and optimisations, that are shown: the newest; of them, with shapes to turn


class SpecRecord(TypedDict, total=False):
    """The parts of a network's spec that the report reads."""

    kwargs: list[tuple[str, Any]]
    shapes: list[list[int]]


class ArchRecord(Record):
    """An architecture in space.json."""

    class_id: int = 0
    spec: SpecRecord = Field(default_factory=SpecRecord)
    shown: bool = True


class SpaceRecord(Record):
    """The parts of space.json that the report reads."""

    archs: dict[str, ArchRecord] = Field(default_factory=dict)


@dataclass(frozen=True)
class Tensors:
    """The tensors that an evaluation writes next to its figures."""

    latents: np.ndarray  # (M, E)
    rows: np.ndarray  # of the members whose PReps follow
    preps: np.ndarray  # (len(rows), H, W)
    decoded: np.ndarray  # (len(rows), H, W)


@dataclass(frozen=True)
class Evaluated:
    """One evaluation with its tensors."""

    split: str
    figures: SavedEvaluation
    tensors: Tensors | None  # None if they are missing or belong to another evaluation

    @cached_property
    def target(self) -> np.ndarray:
        """Accuracies (M,) of targets."""
        return np.array(self.figures.detail.accuracy_target)

    @cached_property
    def predicted(self) -> np.ndarray:
        """Accuracies (M,) of predictions."""
        return np.array(self.figures.detail.accuracy_predicted)

    @property
    def member(self) -> list[str]:
        """The members' names: those of their signals, where these are known."""
        return self.figures.detail.signal or self.figures.detail.member

    @property
    def archs(self) -> list[str]:
        """The architectures' ids by ClassId; evaluations of a single one need not name it."""
        return self.figures.archs or list(self.figures.per_class)[:1] or [""]

    @property
    def multi(self) -> bool:
        """Whether the space is one of several architectures."""
        return len(self.archs) > 1

    @cached_property
    def class_ids(self) -> np.ndarray:
        """ClassIds (M,) of the members."""
        return self._ids(self.figures.detail.arch)

    @cached_property
    def decoded_ids(self) -> np.ndarray:
        """ClassIds (M,) as which the members were decoded."""
        return self._ids(self.figures.detail.arch_predicted)

    def _ids(self, names: list[str]) -> np.ndarray:
        return np.array([self.archs.index(name) if self.multi else 0 for name in names or self.member])

    @property
    def pairs(self) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """Accuracies of targets and of predictions, and ClassIds of both, each (M,)."""
        return self.target, self.predicted, self.class_ids, self.decoded_ids


@dataclass(frozen=True)
class Run:
    """A run folder's content."""

    path: Path
    config: str  # the text of config.yaml
    recipe: Mapping[str, Any]  # the same as values; empty if it is not a mapping
    provenance: Mapping[str, Any]
    archs: Mapping[str, ArchRecord]
    records: list[dict[str, Any]]  # of metrics.jsonl
    evaluations: dict[str, Evaluated]  # by split
    interpolations: dict[str, Interpolation]  # by the names of their files, the newest first
    optimizations: dict[str, Optimization]  # by the names of their folders, the newest first
    samples: list[Sampling]
    shapes: dict[str, Shown]  # of members, by split
    shape_lines: dict[str, Shown]  # between two chosen shapes, by the names of their files, the newest first

    @property
    def main(self) -> Evaluated | None:
        """The evaluation that the page begins with."""
        return next(iter(self.evaluations.values()), None)

    @property
    def score(self) -> Score | None:
        """What the accuracies are, where they are none."""
        scores = [each.figures.score for each in self.evaluations.values()]
        scores += [each.score for each in self.interpolations.values()]
        scores += [each.score for each in self.optimizations.values()] + [each.score for each in self.samples]
        return next((each for each in scores if each), None)

    @property
    def order(self) -> list[str]:
        """The architectures' ids by ClassId, the smallest first."""
        evaluated = (each.figures.archs for each in self.evaluations.values() if each.multi)
        return sorted(self.archs, key=lambda name: self.archs[name].class_id) or next(evaluated, [])

    @property
    def unseen(self) -> list[str]:
        """The architectures of which no network was seen in training."""
        names = {name for name, arch in self.archs.items() if not arch.shown}
        for each in self.evaluations.values():
            names |= {name for name, between in each.figures.between.items() if not between.shown}
        return [name for name in self.order if name in names]

    @property
    def lines(self) -> list[Line]:
        """The lines between two chosen networks."""
        return [chosen_line(name, line, self.order) for name, line in self.interpolations.items()]

    @property
    def chance(self) -> float | None:
        """1 / classes of the networks' task; None if it is not known or differs between architectures."""
        counts = {dict(arch.spec.get("kwargs", ())).get("classes") for arch in self.archs.values()}
        count = next(iter(counts)) if len(counts) == 1 else None
        return 1 / count if isinstance(count, int) and count > 0 else None

    def parameters(self, arch: str) -> int | None:
        """Return the number of parameters of an architecture's networks; None if space.json does not say."""
        shapes = self.archs[arch].spec.get("shapes", ()) if arch in self.archs else ()
        return sum(math.prod(shape) for shape in shapes) or None


@dataclass(frozen=True)
class Fitted:
    """The content of a compressed network's folder; what no command has written is None or empty."""

    path: Path
    config: str  # the text of config.yaml; empty if there is none
    network: str | None  # hash of the original
    figures: FitResult
    losses: list[dict[str, Any]]  # the records of metrics.jsonl with terms of the loss
    kernels: KernelSamples | None
    activations: ActivationMaps | None
    analysis: Analysis | None
    pruning: Pruning | None
    quantised: dict[int, Quantisation]  # by bits
    budget: BudgetFit | None = None  # of a fit with a size


def is_fit(path: Path) -> bool:
    """Return whether `netspace compress fit` wrote, or began, this folder."""
    began = (path / "network.json").is_file() and (path / "config.yaml").is_file()
    return began or (not is_run(path) and (path / "fit.json").is_file())


def read_run(path: Path) -> Run:
    """Read a run folder. Raises `NetspaceError` if it is none, has no results yet, or a file in it is broken."""
    if not is_run(path):
        raise NetspaceError(
            f"{path} is not a run folder (config.yaml and provenance.json were expected in it, written by `netspace train`), "
            "nor one that `netspace compress fit` wrote"
        )
    recipe, space = read_yaml(path / "config.yaml"), path / "space.json"
    samples = [Sampling.read(file) for file in sorted((path / "samples").glob("*.json"))]
    run = Run(
        path=path,
        config=without_seal(read_text(path / "config.yaml")),
        recipe=recipe if isinstance(recipe, dict) else {},
        provenance=read_json(path / "provenance.json", dict[str, Any]),
        archs=read_json(space, SpaceRecord).archs if space.is_file() else {},
        records=_records(path / "metrics.jsonl"),
        evaluations={split: _evaluated(path, split) for split in SPLITS if (path / f"eval-{split}.json").is_file()},
        interpolations={file.stem: Interpolation.read(file) for file in _newest(path, "interpolations/*.json")},
        optimizations={
            file.parent.name: Optimization.read(file) for file in _newest(path, "optimized/*/optimize.json")
        },
        samples=[sample for sample in samples if sample.shown is not None],
        shapes={
            split: read_shown(file) for split in SPLITS if (file := path / f"eval-{split}-shapes.safetensors").is_file()
        },
        shape_lines={
            file.stem: read_shown(file) for file in _newest(path, "interpolations/*.safetensors")[:MAX_SHAPE_LINES]
        },
    )
    if not (run.records or run.evaluations or run.interpolations):
        raise NetspaceError(
            f"{path} holds no results to report: no metrics.jsonl with records, no evaluation, no interpolation; go on "
            f"with its training (`{RunFolder.of_space(path).command}`)"
        )
    return run


def read_fit(path: Path) -> Fitted:
    """Read a folder for which `is_fit` holds. Raises `NetspaceError` if its fit is not done, or a file is broken."""
    config, network = path / "config.yaml", path / "network.json"
    if not (path / "fit.json").is_file():
        folder = RunFolder.of(FIT, path, again=["MODEL"])
        raise NetspaceError(
            f"{path} holds no results to report: its fit is not done; go on with it (`{folder.command}`)"
        )
    files = {name: path / f"{name}.json" for name in ("kernels", "activations", "analysis", "prune")}
    both = {bits: [path / f"quantise-{bits}{end}.json" for end in ("", "-alone")] for bits in (8, 4)}
    quantised = {bits: next((file for file in each if file.is_file()), None) for bits, each in both.items()}
    figures = BudgetFit.read(path / "fit.json") if is_budget(path / "fit.json") else FitResult.read(path / "fit.json")
    return Fitted(
        path=path,
        config=without_seal(read_text(config)) if config.is_file() else "",
        network=NetworkMark.read(network).hash if network.is_file() else None,
        figures=figures,
        losses=[{"stage": 0, **record} for record in read_metrics(path / "metrics.jsonl") if "rate" in record],
        kernels=KernelSamples.read(files["kernels"]) if files["kernels"].is_file() else None,
        activations=ActivationMaps.read(files["activations"]) if files["activations"].is_file() else None,
        analysis=Analysis.read(files["analysis"]) if files["analysis"].is_file() else None,
        pruning=Pruning.read(files["prune"]) if files["prune"].is_file() else None,
        quantised={bits: Quantisation.read(file) for bits, file in quantised.items() if file is not None},
        budget=figures if isinstance(figures, BudgetFit) else None,
    )


def is_budget(file: Path) -> bool:
    """Return whether a `fit.json` is that of a fit with a size."""
    return "bytes_budget" in read_json(file, dict[str, Any])


def _newest(path: Path, pattern: str) -> list[Path]:
    return sorted(path.glob(pattern), key=lambda file: (-file.stat().st_mtime, str(file)))[:MAX_LINES]


def _evaluated(path: Path, split: str) -> Evaluated:
    figures = SavedEvaluation.read(path / f"eval-{split}.json")
    return Evaluated(split, figures, _tensors(path / f"eval-{split}.safetensors", len(figures.detail.member)))


def _tensors(file: Path, members: int) -> Tensors | None:
    if not file.is_file():
        return None
    try:
        tensors, _ = read_tensors(file)
        latents, preps, decoded = (tensors[name].float().numpy() for name in ("latents", "preps", "decoded"))
        result = Tensors(latents, tensors["shown"].numpy(), preps, decoded)
    except (NetspaceError, KeyError, TypeError) as error:
        raise NetspaceError(f"{file} cannot be read ({first_line(error)}): run `netspace eval` again") from None
    rows = result.rows
    fits = result.latents.ndim == 2 and len(result.latents) == members and result.preps.ndim == 3
    fits = fits and rows.ndim == 1 and rows.dtype == np.int64 and bool(((rows >= 0) & (rows < members)).all())
    fits = fits and result.preps.shape == result.decoded.shape and len(rows) == len(result.preps)
    return result if fits else None


def _records(file: Path) -> list[dict[str, Any]]:
    try:
        return read_metrics(file)
    except (OSError, UnicodeDecodeError) as error:
        raise NetspaceError(f"{file} cannot be read: {first_line(error)}") from None
