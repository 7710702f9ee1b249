"""What lies in a run folder, read once, checked, and never written.

Axes: M members, E latent size, H W of a PRep. Nothing but the run folder is read: neither zoo nor data. A part that is
not there is None or empty; one that is there and broken raises `NetspaceError` with the file's name.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from netspace.errors import NetspaceError, first_line
from netspace.io import read_tensors, read_text, read_yaml, without_seal
from netspace.report.classes import Classes, classes_of
from netspace.report.reading import ends_of, finite, mapping_of, names_of, numbers_of, part
from netspace.run_folder import is_run, read_metrics

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
    classes: Classes | None  # None where the space is of one architecture


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
    arch: list[str] = field(default_factory=list)  # as which each point was decoded; empty where it is not told
    linear_r2: float | None = (
        None  # of a straight line through the accuracies; None in files from before it was measured
    )
    weight_linear_r2: float | None = None
    ends: tuple[float | None, float | None] = (None, None)  # decoded minus target accuracy, at start and end


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
    arch: list[str]  # of the starts; empty where it is not told
    network: np.ndarray  # (S,) of the networks that the starts were encoded from, NaN for none; empty as `arch`
    best: int  # the start that is best on validation images


@dataclass(frozen=True)
class Sample:
    """New networks drawn of one architecture; accuracies and shares of test images are means."""

    arch: str
    shown: bool  # whether the space saw trained networks of it
    fit: str
    count: int
    accuracy: float | None
    trained: float | None  # accuracy of the zoo's training members
    novelty: float | None  # share answered otherwise than by the nearest training network
    recognised: float | None  # share of latents that the ClassId head takes for the architecture


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
    samples: list[Sample] = field(default_factory=list)

    @property
    def order(self) -> list[str]:
        """The architectures' ids by ClassId, the smallest first."""
        told = {name: finite(part(self.archs, name).get("class_id")) for name in self.archs}
        evaluated = (found.classes.archs for found in self.evaluations.values() if found.classes)
        return sorted(told, key=lambda name: told[name] or 0) or next(evaluated, [])

    def parameters(self, arch: str) -> int | None:
        """P: how many parameters networks of an architecture have; None where space.json does not tell."""
        try:
            return sum(math.prod(int(size) for size in shape) for shape in self.archs[arch]["spec"]["shapes"])
        except (KeyError, TypeError, ValueError):
            return None

    @property
    def unseen(self) -> list[str]:
        """The architectures of which the space was never shown a network."""
        told = {name for name in self.archs if part(self.archs, name).get("shown") is False}
        for found in self.evaluations.values():
            told |= {each.arch for each in found.classes.between if not each.shown} if found.classes else set()
        return [name for name in self.order if name in told]

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
        raise NetspaceError(
            f"{path} is not a run folder (config.yaml and provenance.json were expected in it), nor one that `netspace compress fit` wrote"
        )
    config = without_seal(read_text(path / "config.yaml"))
    recipe = read_yaml(path / "config.yaml")
    space = mapping_of(path / "space.json") if (path / "space.json").is_file() else {}
    archs = space.get("archs")
    evaluations = {split: _evaluation(path, split) for split in SPLITS if (path / f"eval-{split}.json").is_file()}
    climbs = sorted((path / "optimized").glob("*/optimize.json"), key=lambda file: (-file.stat().st_mtime, str(file)))
    newest = sorted((path / "interpolations").glob("*.json"), key=lambda file: (-file.stat().st_mtime, file.name))
    run = Run(
        path=path,
        config=config,
        recipe=recipe if isinstance(recipe, dict) else {},
        provenance=mapping_of(path / "provenance.json"),
        archs=archs if isinstance(archs, dict) else {},
        records=_records(path / "metrics.jsonl"),
        evaluations=evaluations,
        lines=[_line(file) for file in newest[:LINES]],
        climbs=[_climb(file) for file in climbs[:LINES]],
        samples=[found for file in sorted((path / "samples").glob("*.json")) for found in _sample(file)],
    )
    if not (run.records or run.evaluations or run.lines):
        raise NetspaceError(
            f"{path} holds no results to report: no metrics.jsonl with records, no evaluation, no interpolation; go on "
            "with its training (`netspace train CONFIG --zoo ZOO --out RUN --resume`)"
        )
    return run


def _evaluation(path: Path, split: str) -> Evaluation:
    file = path / f"eval-{split}.json"
    figures = mapping_of(file)
    detail = part(figures, "detail")
    target, predicted = (numbers_of(detail, name, file) for name in ("accuracy_target", "accuracy_predicted"))
    member = [str(name) for name in detail.get("member") or []]
    if not len(member) == len(target) == len(predicted) > 0:
        raise NetspaceError(
            f"{file} was expected to tell every member's name and accuracies, but holds {len(member)} names, "
            f"{len(target)} target and {len(predicted)} predicted accuracies: run `netspace eval` again"
        )
    if not (np.isfinite(target).all() and np.isfinite(predicted).all()):
        raise NetspaceError(f"{file} holds accuracies that are not finite numbers: run `netspace eval` again")
    tensors = _tensors(path / f"eval-{split}.safetensors", len(member))
    return Evaluation(split, figures, member, target, predicted, tensors, classes_of(figures, file, len(member)))


def _tensors(file: Path, members: int) -> Tensors | None:
    if not file.is_file():
        return None
    try:
        tensors, _ = read_tensors(file)
        latents, preps, decoded = (tensors[name].float().numpy() for name in ("latents", "preps", "decoded"))
        found = Tensors(latents, tensors["shown"].numpy(), preps, decoded)
    except (NetspaceError, KeyError, TypeError) as error:
        raise NetspaceError(f"{file} cannot be read ({first_line(error)}): run `netspace eval` again") from None
    rows = found.shown
    fits = (
        found.latents.ndim == 2
        and len(found.latents) == members
        and rows.ndim == 1
        and rows.dtype == np.int64
        and found.preps.ndim == 3
    )
    fits = fits and found.preps.shape == found.decoded.shape and len(rows) == len(found.preps)
    fits = fits and bool(((rows >= 0) & (rows < members)).all())
    return found if fits else None


def _line(file: Path) -> Line:
    raw = mapping_of(file)
    gamma, latent = numbers_of(raw, "gamma", file), numbers_of(raw, "latent_accuracy", file)
    weights = None if raw.get("weight_accuracy") is None else numbers_of(raw, "weight_accuracy", file)
    if not len(gamma) or len(gamma) != len(latent) or (weights is not None and len(weights) != len(gamma)):
        raise NetspaceError(
            f"{file} was expected to hold one accuracy for each gamma: run `netspace interpolate` again"
        )
    arch = names_of(raw, "arch", file)
    if arch and len(arch) != len(gamma):
        raise NetspaceError(
            f"{file} was expected to hold one architecture for each gamma: run `netspace interpolate` again"
        )
    start, end = str(raw.get("from", "?")), str(raw.get("to", "?"))
    ranks = finite(raw.get("spearman")), finite(raw.get("weight_spearman"))
    straight = finite(raw.get("linear_r2")), finite(raw.get("weight_linear_r2"))
    return Line(file.stem, start, end, gamma, latent, weights, *ranks, arch, *straight, ends_of(raw))


def _climb(file: Path) -> Climb:
    raw = mapping_of(file)
    starts, curve = [str(name) for name in raw.get("from") or []], raw.get("curve")
    before, after = (numbers_of(raw, name, file) for name in ("accuracy_before", "accuracy_after"))
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
    arch, network = names_of(raw, "arch", file), numbers_of(raw, "accuracy_network", file)
    if not len(arch) == len(network) or len(arch) not in (0, len(starts)):
        raise NetspaceError(
            f"{file} was expected to tell every start's architecture and its own network's accuracy, or neither: run "
            "`netspace optimize` again"
        )
    best, known = finite(raw.get("best")), np.nan_to_num(accuracy, nan=-1.0)
    chosen = int(best) if best is not None and 0 <= best < len(starts) else int(known.max(0).argmax())
    teacher = str(raw.get("teacher", "?"))
    return Climb(file.parent.name, starts, teacher, steps, accuracy, before, after, arch, network, chosen)


def _sample(file: Path) -> list[Sample]:
    """What was drawn; nothing from a file that does not say whether the architecture was shown."""
    raw = mapping_of(file)
    if "shown" not in raw:
        return []
    told = part(raw, "sampled")
    count = finite(raw.get("count"))
    if count is None or not told:
        raise NetspaceError(f"{file} was expected to tell how many networks were drawn: run `netspace sample` again")
    own = (told.get("accuracy"), raw.get("zoo_accuracy"), told.get("novelty"), raw.get("classid_accuracy"))
    fit = str(raw.get("fit", "?"))
    return [Sample(str(raw.get("arch", "?")), raw["shown"] is not False, fit, int(count), *map(finite, own))]


def average_line(evaluation: Evaluation) -> Line | None:
    """The mean over the lines of an evaluation; None where it has none."""
    raw = part(evaluation.figures, "interpolation")
    if not raw.get("gamma") or not raw.get("latent_accuracy"):
        return None
    file = Path(f"eval-{evaluation.split}.json")
    names = ("gamma", "latent_accuracy", "weight_accuracy")
    gamma, latent, weights = (numbers_of(raw, name, file) for name in names)
    if len(gamma) != len(latent):
        return None
    ranks = finite(raw.get("spearman_latent")), finite(raw.get("spearman_weights"))
    straight = finite(raw.get("linear_r2_latent")), finite(raw.get("linear_r2_weights"))
    both = weights if len(weights) == len(gamma) else None
    return Line("average", "", "", gamma, latent, both, *ranks, [], *straight, ends_of(raw))


def _records(file: Path) -> list[dict[str, Any]]:
    try:
        records = read_metrics(file)
    except (OSError, UnicodeDecodeError) as error:
        raise NetspaceError(f"{file} cannot be read: {first_line(error)}") from None
    return [record for record in records if isinstance(record, dict) and finite(record.get("step")) is not None]
