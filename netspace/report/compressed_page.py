"""The page of a compressed network: its words, tables and what could not be shown."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from typing import Any

from netspace.report.compressed import Fitted
from netspace.report.numbers import NOTHING, count, number, percent
from netspace.report.page import chapter, document, provenance
from netspace.report.picture import Picture
from netspace.report.reading import finite, part
from netspace.report.tables import table

CHAPTERS = (
    ("course", "The fit"),
    ("layers", "Layer by layer"),
    ("smooth", "Smooth weights and generalisation"),
    ("smaller", "Smaller still"),
)
NETWORKS = {
    "original": "the original",
    "original_quantised": "the original in {bits} bits",
    "reconstructed": "reconstructed",
    "quantised": "reconstructed, predictor in {bits} bits",
}


def page(fitted: Fitted, shown: Sequence[Picture], missing: Sequence[tuple[str, str]]) -> str:
    """The whole document; `missing` are (chapter, sentence) for what is not there."""
    before = {"smooth": _gaps(fitted), "smaller": _quantised(fitted)}
    sections = [chapter(key, name, shown, missing, before.get(key, [])) for key, name in CHAPTERS]
    facts = {
        "file": fitted.figures.get("file"),
        "SHA-256 of the original's tensors": fitted.network,
        "order of kernels": fitted.figures.get("order"),
    }
    sections.append(provenance({name: value for name, value in facts.items() if value is not None}, fitted.config))
    return document(fitted.name, summary(fitted), tiles(fitted), sections)


def summary(fitted: Fitted) -> str:
    """The compressed network in plain words."""
    told = fitted.figures
    predictor, represented = told.get("parameters_predictor"), told.get("parameters_represented")
    sentences = [
        f"A predictor of {count(predictor)} values stands for {count(represented)} of the network's "
        f"{count(told.get('parameters_original'))} parameters; the file of {count(told.get('bytes_file'))} bytes, all else "
        f"included, is {_share(told, 'bytes_file', 'bytes_original')} of the original's size."
    ]
    if finite(told.get("accuracy_reconstructed")) is not None:
        sentences.append(
            f"On the test images the reconstructed network scores {percent(told.get('accuracy_reconstructed'), 2)} and the "
            f"original {percent(told.get('accuracy_original'), 2)}; they give the same answer on "
            f"{percent(told.get('agreement'))} of them."
        )
    if finite(told.get("relative_error")) is not None:
        sentences.append(f"The relative error of the weights is {number(told.get('relative_error'), 3)}.")
    return " ".join(sentences)


def tiles(fitted: Fitted) -> list[tuple[str, str]]:
    """The main figures as (name, value)."""
    told = fitted.figures
    found = [
        ("predictor, of represented weights", _share(told, "parameters_predictor", "parameters_represented")),
        ("file, of the original's bytes", _share(told, "bytes_file", "bytes_original")),
        ("accuracy, original", percent(told.get("accuracy_original"), 2)),
        ("accuracy, reconstructed", percent(told.get("accuracy_reconstructed"), 2)),
        ("same answer as the original", percent(told.get("agreement"))),
        ("relative error of the weights", number(told.get("relative_error"), 3)),
    ]
    return [(name, value) for name, value in found if value != NOTHING]


def missing(fitted: Fitted) -> list[tuple[str, str]]:
    """(chapter, one sentence) for what could not be shown, with the command that makes it."""
    file, told = shlex.quote(str(fitted.path / "compressed.safetensors")), []
    analyse = f"`netspace compress analyse {file} MODEL --zoo ZOO`"
    if fitted.analysis is None:
        told.append(("layers", f"Singular values and likeness by layer were not measured yet: {analyse} does."))
    elif fitted.kernels is None:
        told.append(("layers", f"No kernels were kept that could be shown: {analyse} keeps some."))
    if fitted.analysis is not None and not fitted.analysis.alike:
        told.append(("layers", f"Of the original only weights were known: {analyse} with its data measures the rest."))
    if not fitted.pruning:
        told.append(("smaller", f"The predictor was not pruned yet: `netspace compress prune {file} MODEL` does."))
    for bits in (8, 4):
        if bits not in fitted.quantised:
            out = shlex.quote(str(fitted.path / f"compressed-{bits}.safetensors"))
            command = f"`netspace compress quantise {file} MODEL --bits {bits} -o {out}`"
            told.append(("smaller", f"The predictor was not tried in {bits} bits yet: {command} does."))
    return told


def _gaps(fitted: Fitted) -> list[str]:
    """Accuracy and cross-entropy on training and test images."""
    if fitted.analysis is None or not fitted.analysis.gaps:
        return []
    gaps, rows = fitted.analysis.gaps, []
    for key in ("original", "reconstructed"):
        told = part(gaps, key)
        shares = [percent(told.get(f"accuracy_{split}"), 2) for split in ("train", "test")]
        losses = [number(told.get(name), 4) for name in ("loss_train", "loss_test", "gap_loss")]
        gap = finite(told.get("gap_accuracy"))
        rows.append([key, *shares, NOTHING if gap is None else f"{number(100 * gap, 2)} points", *losses])
    caption = (
        f"The generalisation gap: accuracy and cross-entropy (nats) on {count(gaps.get('training_images'))} training images and "
        "on all test images, and the difference."
    )
    return [table(["", "training", "test", "gap", "loss, training", "loss, test", "gap of loss"], rows, caption)]


def _quantised(fitted: Fitted) -> list[str]:
    """A table for each number of bits."""
    found = []
    for bits, figures in fitted.quantised.items():
        rows = []
        for key, told in part(figures, "networks").items():
            if isinstance(told, dict):
                size = finite(told.get("bytes")), finite(figures.get("bytes_original"))
                share = percent(size[0] / size[1]) if size[0] and size[1] else NOTHING
                measured = [percent(told.get("accuracy"), 2), percent(told.get("agreement"))]
                name = NETWORKS.get(key, key).format(bits=bits)
                rows.append([name, count(told.get("bytes")), share, number(told.get("relative_error"), 3), *measured])
        caption = f"The predictor's weights in {bits} bits, beside the original's own weights in as many."
        heads = ["", "bytes", "of the original's", "relative error", "accuracy", "same answer"]
        found.append(table(heads, rows, caption))
    return found


def _share(told: Mapping[str, Any], part_of: str, whole: str) -> str:
    first, second = finite(told.get(part_of)), finite(told.get(whole))
    return percent(first / second) if first is not None and second else NOTHING
