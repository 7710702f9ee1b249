"""The content of a morph's run folder, read once and never written, and the text and tables of its page.

Axes: W widths, the widest first. A part that no command has written is None or empty; a broken one raises `NetspaceError`.
"""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from netspace.errors import NetspaceError
from netspace.io import read_json, read_tensors, read_text, without_seal
from netspace.report.drawing import MISSING, count, finite, number, percent
from netspace.report.tables import Table
from netspace.results import Score
from netspace.results.morph_eval import MorphEvaluation, WidthFigures
from netspace.results.morphs import MorphFit
from netspace.run_folder import MORPH, RunFolder, read_metrics

METHODS = {  # of the networks that are compared, in the order of the page
    "morph": "the morph",
    "sampled": "the morph, mean of {draws} draws",
    "individual": "trained at this width alone",
    "us_net": "US-Net",
    "pruned_l1": "pruned (l1)",
    "pruned_taylor": "pruned (Taylor)",
    "pruned_random": "pruned (random)",
    "resampled": "weights resampled",
}
STARTS = {"network": " from the network", "fresh": " from fresh weights"}  # of US-Net's training
SHORT = {**METHODS, "individual": "trained alone"}  # where there is little room


@dataclass(frozen=True)
class Morphed:
    """The run folder of a morph."""

    path: Path
    config: str  # the text of config.yaml
    provenance: Mapping[str, Any]
    fit: MorphFit
    evaluation: MorphEvaluation | None
    records: list[dict[str, Any]]  # of metrics.jsonl
    pictures: Mapping[str, np.ndarray]  # rows of images (S, h, w, 3) by name

    @property
    def score(self) -> Score | None:
        """What the accuracies are, where they are none."""
        return self.fit.score

    def name(self, method: str) -> str:
        """Return what a method is called."""
        start = STARTS.get(self.evaluation.us_net_start or "", "") if self.evaluation and method == "us_net" else ""
        return METHODS[method].format(draws=self.evaluation.draws if self.evaluation else "") + start

    def values(self, method: str) -> tuple[list[float | None], list[float | None]]:
        """Return the accuracies (W,) of a method's networks, and their standard deviations over seeds; None if not known."""
        widths = self.evaluation.widths if self.evaluation else []
        pairs = [_value(each, method) for each in widths]
        return [value for value, _ in pairs], [spread for _, spread in pairs]

    @property
    def methods(self) -> list[str]:
        """The methods that were measured at any width."""
        return [each for each in METHODS if any(value is not None for value in self.values(each)[0])]


def _value(figures: WidthFigures, method: str) -> tuple[float | None, float | None]:
    if method == "morph":
        return finite(figures.accuracy), finite(figures.accuracy_std)
    if method == "sampled":
        return finite(figures.sampled_accuracy), finite(figures.sampled_accuracy_std)
    return finite(getattr(figures.baselines, method)), finite(getattr(figures.baselines_std, method))


def is_morph(path: Path) -> bool:
    """Return whether `netspace morph fit` wrote, or began, this folder."""
    with suppress(NetspaceError):
        return (path / "provenance.json").is_file() and RunFolder.of(MORPH, path).origin.kind == MORPH
    return False


def read_morph(path: Path) -> Morphed:
    """Read a folder for which `is_morph` holds. Raises `NetspaceError` if its fit is not done, or a file is broken."""
    if not (path / "fit.json").is_file():
        raise NetspaceError(
            f"{path} holds no results to report: its fit is not done; go on with it (`{RunFolder.of(MORPH, path).command}`)"
        )
    evaluation, pictures = path / "eval.json", path / "eval.safetensors"
    return Morphed(
        path=path,
        config=without_seal(read_text(path / "config.yaml")),
        provenance=read_json(path / "provenance.json", dict[str, Any]),
        fit=MorphFit.read(path / "fit.json"),
        evaluation=MorphEvaluation.read(evaluation) if evaluation.is_file() else None,
        records=read_metrics(path / "metrics.jsonl"),
        pictures=_pictures(pictures) if evaluation.is_file() and pictures.is_file() else {},
    )


def _pictures(file: Path) -> dict[str, np.ndarray]:
    tensors, _ = read_tensors(file)
    rows = {name.partition(" ")[2]: tensors[name].numpy() for name in sorted(tensors)}
    if any(each.dtype != np.uint8 or each.ndim != 4 or each.shape[-1] not in (3, 4) for each in rows.values()) or (
        len({len(each) for each in rows.values()}) > 1
    ):
        raise NetspaceError(f"{file} was expected to hold rows of images: run `netspace morph eval` again")
    return rows


# --- text ---


def morph_summary(run: Morphed) -> str:
    """Return the summary of a morph."""
    fit = run.fit
    sentences = [
        f"One function of {count(fit.stored_parameters)} stored values gives the weights of {fit.arch}, a network of "
        f"{count(fit.full_parameters)} parameters, at any width. It was trained for networks that leave out up to "
        f"{percent(fit.narrowest, 0)} of the channels of {count(len(fit.groups))} groups."
    ]
    if run.evaluation is None:
        return " ".join([*sentences, "It has not been compared with other methods yet."])
    first, last = run.evaluation.widths[0], run.evaluation.widths[-1]
    whole = finite(run.evaluation.full_accuracy)
    known = "" if whole is None else f", where the network that it was fitted to scores {percent(whole)}"
    sentences.append(
        f"On the test images the morph's network of {count(first.parameters)} parameters scores "
        f"{percent(first.accuracy)}{known}."
    )
    if last is not first:
        other = finite(last.baselines.individual)
        beside = "" if other is None else f"; a network trained at this width alone scores {percent(other)}"
        seen = "" if last.trained else ", narrower than any in training,"
        sentences.append(
            f"The one of {count(last.parameters)} parameters{seen} scores {percent(last.accuracy)}{beside}."
        )
    return " ".join(sentences)


def morph_tiles(run: Morphed) -> list[tuple[str, str]]:
    """Return the main figures as (name, value)."""
    fit, variation, evaluation = run.fit, run.fit.total_variation, run.evaluation
    entries = [
        ("stored values, of the network's parameters", _part(fit.stored_parameters, fit.full_parameters)),
        ("accuracy, network it was fitted to", percent(finite(fit.full_accuracy))),
    ]
    for each in evaluation.widths if evaluation else ():
        entries.append((f"accuracy, γ {number(each.gamma)}", percent(finite(each.accuracy))))
    if variation is not None:
        entries.append(("total variation after ordering", _part(variation.after, variation.before)))
    if evaluation and (seconds := finite(evaluation.seconds.morph)) is not None:
        alone = _alone(evaluation)
        entries.append(("training, in times of one network's", MISSING if not alone else number(seconds / alone, 1)))
    return [(name, value) for name, value in entries if value != MISSING]


def morph_missing(run: Morphed) -> list[tuple[str, str]]:
    """Return (section, sentence) for what is missing, with the command that makes it."""
    sentences, folder = [], shlex.quote(str(run.path))
    if run.evaluation is None:
        how = f"`netspace morph eval {folder}` measures them, with networks of other methods of the same widths"
        sentences.append(("widths", f"The networks of this morph have not been evaluated yet: {how}."))
    if not run.records:
        sentences.append(("training", "There is no metrics.jsonl, so the course of the training cannot be drawn."))
    return sentences


def _part(part: float, whole: float) -> str:
    return percent(part / whole) if whole else MISSING


def _alone(evaluation: MorphEvaluation) -> float | None:
    """Return the seconds in which one network of full width was trained."""
    for figures, seconds in zip(evaluation.widths, evaluation.seconds.individual, strict=False):
        if figures.gamma == 0:
            return finite(seconds)
    return None


# --- tables ---


def width_tables(run: Morphed) -> list[Table]:
    """Return the tables of networks by method and width: accuracies, what else the task measures, and seconds of training."""
    evaluation = run.evaluation
    if evaluation is None:
        return []
    head = ["", *(f"γ {number(each.gamma)}{'' if each.trained else ' (unseen)'}" for each in evaluation.widths)]
    rows = [["parameters", *(count(each.parameters) for each in evaluation.widths)]]
    for method in run.methods:
        rows.append([run.name(method), *map(_spread, *run.values(method))])
    if any(each.agreement is not None for each in evaluation.widths):
        agreement = [_spread(finite(each.agreement), finite(each.agreement_std)) for each in evaluation.widths]
        rows.append(["the morph's agreement", *agreement])
    seeds = f"; means of {evaluation.seeds} seeds ± standard deviation" if evaluation.seeds > 1 else ""
    caption = (
        f"By width, accuracy on the test images{seeds}. γ is the fraction of channels left out, of every group; unseen are widths outside "
        f"the morph's training. Other networks have exactly the same shapes. Trained ones (alone, or all widths at once as US-Net) had "
        f"{count(finite(evaluation.training.get('epochs')))} epochs; pruned and resampled ones were not trained afterwards. All batch norms were recalibrated on "
        "the same training images. Agreement is the fraction of answers that are those of the network that the morph was fitted to."
    )
    return [Table(head, rows, caption), *_measures(run, head), *_seconds(run, evaluation)]


def _spread(value: float | None, spread: float | None) -> str:
    return percent(value) if spread is None else f"{percent(value)} ± {number(100 * spread, 1)}"


def _measures(run: Morphed, head: list[str]) -> list[Table]:
    """Return a table of each further measure of the task."""
    assert run.evaluation is not None
    widths, tables = run.evaluation.widths, []
    for name in widths[0].measures:
        rows = []
        for method in (each for each in METHODS if each != "sampled"):
            values = [
                finite(getattr(each.measures[name], method)) if name in each.measures else None for each in widths
            ]
            if any(value is not None for value in values):
                rows.append([run.name(method), *(number(value, 3) for value in values)])
        tables.append(Table(head, rows, f"A further measure on the test images: {name}."))
    return tables


def _seconds(run: Morphed, evaluation: MorphEvaluation) -> list[Table]:
    """Return a table of how long trainings took."""
    seconds, alone = evaluation.seconds, _alone(evaluation)
    known = [value for value in map(finite, seconds.individual) if value is not None]
    every = sum(known) if known and len(known) == len(seconds.individual) else None
    rows = [
        [name, number(value, 1), number(value / alone, 2) if alone else MISSING]
        for name, value in (
            ("the morph, from the network it was fitted to", finite(seconds.morph)),
            (run.name("us_net"), finite(seconds.us_net)),
            ("one network of full width alone", alone),
            (f"{len(known)} networks, one for each width", every),
        )
        if value is not None
    ]
    return [Table(["training", "seconds", "of one network's"], rows, "How long trainings took.")] if rows else []


def order_tables(run: Morphed) -> list[Table]:
    """Return the table of total variation, if channels were ordered."""
    variation = run.fit.total_variation
    if variation is None:
        return []
    rows = [
        [name, number(value, 1), _part(value, variation.before)]
        for name, value in (
            ("as trained", variation.before),
            ("greedy: to the nearest channel left", variation.greedy),
            ("as the morph takes them", variation.after),
        )
    ]
    caption = (
        "Total variation of the weights over their channels, by the order of channels, which changes nothing that the network computes: "
        "the smaller, the smoother are weights as a function of coordinates (NeuMeta, Eq. 6 to 8)."
    )
    return [Table(["order of channels", "total variation", "of the first"], rows, caption)]
