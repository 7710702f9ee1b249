"""What lies in a run folder, read once, checked, and never written.

Axes: M members, E latent size, H W of a PRep. Nothing but the run folder is read: neither zoo nor data. A part that is
not there is None or empty; one that is there and broken raises `NetspaceError` with the file's name.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from netspace.errors import NetspaceError
from netspace.runtime import is_run, read_metrics

SPLITS = ("test", "val", "train")  # the order in which they are told
LINES = 6  # interpolations, and optimisations, that are shown, the newest


@dataclass(frozen=True)
class Tensors:
    """What an evaluation keeps beside its figures."""

    latents: np.ndarray  # (M, E)
    shown: np.ndarray  # rows of the members whose PReps are kept
    preps: np.ndarray  # (len(shown), H, W)
    decoded: np.ndarray  # (len(shown), H, W)


@dataclass(frozen=True)
class Evaluation:
    """One `eval-<split>.json`, per member in the order of the zoo's rows."""

    split: str
    figures: Mapping[str, Any]
    member: list[str]
    target: np.ndarray  # (M,) accuracies, fractions
    predicted: np.ndarray  # (M,)
    tensors: Tensors | None  # None where they are missing or belong to another evaluation


@dataclass(frozen=True)
class Line:
    """One interpolation between two networks; fractions of accuracy over gamma."""

    name: str  # of its file, without suffix
    start: str
    end: str
    gamma: np.ndarray
    latent: np.ndarray
    weights: np.ndarray | None
    spearman: float | None
    weight_spearman: float | None


@dataclass(frozen=True)
class Climb:
    """One latent-space optimisation: accuracies (K, S) on validation images of S starts after steps (K,)."""

    name: str  # of its folder
    starts: list[str]
    teacher: str
    steps: np.ndarray
    accuracy: np.ndarray
    before: np.ndarray  # (S,) on test images
    after: np.ndarray  # (S,)


@dataclass(frozen=True)
class Run:
    """A run folder's content."""

    path: Path
    config: str  # the text of config.yaml
    recipe: Mapping[str, Any]  # the same as values; empty if it is not a mapping
    provenance: Mapping[str, Any]
    archs: Mapping[str, Any]  # of space.json
    records: list[dict[str, Any]]
    evaluations: dict[str, Evaluation] = field(default_factory=dict)
    lines: list[Line] = field(default_factory=list)
    climbs: list[Climb] = field(default_factory=list)

    @property
    def name(self) -> str:
        return self.path.resolve().name

    @property
    def chance(self) -> float | None:
        """1 / classes of the networks' task; None where it is not known or differs between architectures."""
        found = set()
        for entry in self.archs.values():
            try:
                found.add(int(dict(entry["spec"]["kwargs"])["classes"]))
            except (KeyError, TypeError, ValueError):
                return None
        return 1 / found.pop() if len(found) == 1 and min(found) > 0 else None


def collect(path: Path) -> Run:
    """Reads a run folder. Raises `NetspaceError` if it is none, holds no results yet, or a file in it is broken."""
    if not is_run(path):
        raise NetspaceError(f"{path} is not a run folder (config.yaml and provenance.json were expected in it)")
    config = _text(path / "config.yaml")
    try:
        recipe = yaml.safe_load(config)
    except yaml.YAMLError as error:
        raise NetspaceError(f"{path / 'config.yaml'} does not parse as YAML: {_first_line(error)}") from None
    space = _mapping(path / "space.json") if (path / "space.json").is_file() else {}
    archs = space.get("archs")
    evaluations = {split: _evaluation(path, split) for split in SPLITS if (path / f"eval-{split}.json").is_file()}
    climbs = sorted((path / "optimized").glob("*/optimize.json"), key=lambda file: (-file.stat().st_mtime, str(file)))
    newest = sorted((path / "interpolations").glob("*.json"), key=lambda file: (-file.stat().st_mtime, file.name))
    run = Run(
        path=path,
        config=config,
        recipe=recipe if isinstance(recipe, dict) else {},
        provenance=_mapping(path / "provenance.json"),
        archs=archs if isinstance(archs, dict) else {},
        records=_records(path / "metrics.jsonl"),
        evaluations=evaluations,
        lines=[_line(file) for file in newest[:LINES]],
        climbs=[_climb(file) for file in climbs[:LINES]],
    )
    if not (run.records or run.evaluations or run.lines):
        raise NetspaceError(
            f"{path} holds no results to report: no metrics.jsonl with records, no evaluation, no interpolation; go on "
            "with its training (`netspace train CONFIG --zoo ZOO --out RUN --resume`)"
        )
    return run


def finite(value: Any) -> float | None:
    """`value` as a float; None for anything that is not a finite number."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        return None
    return float(value)


def part(figures: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    """A mapping inside `figures`, empty if there is none."""
    value = figures.get(name)
    return value if isinstance(value, dict) else {}


def _evaluation(path: Path, split: str) -> Evaluation:
    file = path / f"eval-{split}.json"
    figures = _mapping(file)
    detail = part(figures, "detail")
    target, predicted = (_numbers(detail, name, file) for name in ("accuracy_target", "accuracy_predicted"))
    member = [str(name) for name in detail.get("member") or []]
    if not len(member) == len(target) == len(predicted) > 0:
        raise NetspaceError(
            f"{file} was expected to tell every member's name and accuracies, but holds {len(member)} names, "
            f"{len(target)} target and {len(predicted)} predicted accuracies: run `netspace eval` again"
        )
    if not (np.isfinite(target).all() and np.isfinite(predicted).all()):
        raise NetspaceError(f"{file} holds accuracies that are not finite numbers: run `netspace eval` again")
    tensors = _tensors(path / f"eval-{split}.safetensors", len(member))
    return Evaluation(split, figures, member, target, predicted, tensors)


def _tensors(file: Path, members: int) -> Tensors | None:
    from safetensors import SafetensorError
    from safetensors.numpy import load_file

    if not file.is_file():
        return None
    try:
        held = load_file(file)
        found = Tensors(held["latents"], held["shown"], held["preps"], held["decoded"])
    except (OSError, SafetensorError, KeyError, ValueError) as error:
        raise NetspaceError(f"{file} cannot be read ({_first_line(error)}): run `netspace eval` again") from None
    rows = found.shown
    fits = found.latents.ndim == 2 and len(found.latents) == members and rows.ndim == 1 and found.preps.ndim == 3
    fits = fits and found.preps.shape == found.decoded.shape and len(rows) == len(found.preps)
    fits = fits and bool(((rows >= 0) & (rows < members)).all())
    return found if fits else None


def _line(file: Path) -> Line:
    raw = _mapping(file)
    gamma, latent = _numbers(raw, "gamma", file), _numbers(raw, "latent_accuracy", file)
    weights = None if raw.get("weight_accuracy") is None else _numbers(raw, "weight_accuracy", file)
    if not len(gamma) or len(gamma) != len(latent) or (weights is not None and len(weights) != len(gamma)):
        raise NetspaceError(
            f"{file} was expected to hold one accuracy for each gamma: run `netspace interpolate` again"
        )
    start, end = str(raw.get("from", "?")), str(raw.get("to", "?"))
    ranks = finite(raw.get("spearman")), finite(raw.get("weight_spearman"))
    return Line(file.stem, start, end, gamma, latent, weights, *ranks)


def _climb(file: Path) -> Climb:
    raw = _mapping(file)
    starts, curve = [str(name) for name in raw.get("from") or []], raw.get("curve")
    before, after = (_numbers(raw, name, file) for name in ("accuracy_before", "accuracy_after"))
    try:
        steps = np.array([float(record["step"]) for record in curve or []])
        accuracy = np.array([record["accuracy_val"] for record in curve or []], dtype=np.float64)
    except (TypeError, ValueError, KeyError):
        accuracy = np.empty(0)
    if (
        not len(starts) == len(before) == len(after) > 0
        or accuracy.shape != (len(steps), len(starts))
        or not len(steps)
    ):
        raise NetspaceError(f"{file} was expected to tell every start's accuracies: run `netspace optimize` again")
    return Climb(file.parent.name, starts, str(raw.get("teacher", "?")), steps, accuracy, before, after)


def average_line(evaluation: Evaluation) -> Line | None:
    """The mean over the lines of an evaluation; None where it has none."""
    raw = part(evaluation.figures, "interpolation")
    if not raw.get("gamma") or not raw.get("latent_accuracy"):
        return None
    file = Path(f"eval-{evaluation.split}.json")
    names = ("gamma", "latent_accuracy", "weight_accuracy")
    gamma, latent, weights = (_numbers(raw, name, file) for name in names)
    if len(gamma) != len(latent):
        return None
    ranks = finite(raw.get("spearman_latent")), finite(raw.get("spearman_weights"))
    return Line("average", "", "", gamma, latent, weights if len(weights) == len(gamma) else None, *ranks)


def _numbers(raw: Mapping[str, Any], name: str, file: Path) -> np.ndarray:
    """A list of numbers as float64; null is NaN, nothing is empty."""
    try:
        return np.array([math.nan if value is None else float(value) for value in raw.get(name) or []])
    except (TypeError, ValueError):
        raise NetspaceError(f"{file}: {name!r} was expected to be a list of numbers") from None


def _records(file: Path) -> list[dict[str, Any]]:
    try:
        records = read_metrics(file)
    except (OSError, UnicodeDecodeError) as error:
        raise NetspaceError(f"{file} cannot be read: {_first_line(error)}") from None
    return [record for record in records if isinstance(record, dict) and finite(record.get("step")) is not None]


def _mapping(file: Path) -> dict[str, Any]:
    try:
        found = json.loads(_text(file))
    except json.JSONDecodeError as error:
        raise NetspaceError(f"{file} was expected to be JSON, but it does not parse: {error}") from None
    if not isinstance(found, dict):
        raise NetspaceError(f"{file} was expected to be a JSON object, but holds {type(found).__name__}")
    return found


def _text(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise NetspaceError(f"{file} cannot be read: {_first_line(error)}") from None


def _first_line(error: Exception) -> str:
    return (str(error) or type(error).__name__).splitlines()[0]
