"""The report's tables, as HTML: figures by split and by architecture, baselines, what lies between, starts, samples.

A table is there only where its figures are; every text is escaped here.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from html import escape
from typing import Any

from netspace.report.classes import Between
from netspace.report.collect import Climb, Evaluation, Run, Sample
from netspace.report.numbers import NOTHING, count, number, percent, points, signed_points
from netspace.report.pictures import BASELINES, baseline_names, taught_by
from netspace.report.reading import finite, part

FIGURES = (
    ("members", count, "members"),
    ("accuracy_target", percent, "mean accuracy of targets"),
    ("accuracy_predicted", percent, "mean accuracy of predictions"),
    ("r2", lambda value: number(value, 3), "R² of predicted accuracies"),
    ("mae", points, "mean absolute difference of accuracy"),
    ("bias", signed_points, "bias: mean of predicted minus target accuracy"),
    ("agreement", percent, "agreement: same answer on an image"),
    ("identity.own_minus_peers", signed_points, "agreement with the own target over that with others as accurate"),
    ("identity.jaccard_own", percent, "overlap of mistakes with the own target (Jaccard)"),
    ("identity.jaccard_peers", percent, "the same with others as accurate"),
    ("identity.without_peers", count, "members that have no other within a point of their accuracy, left out of these"),
    ("kl", lambda value: number(value, 3), "KL divergence from target to prediction, nats"),
    ("classid_accuracy", percent, "architecture recognised (ClassId)"),
    ("diversity", number, "diversity of predictions: mean L2 distance of pairs"),
    ("zoo_diversity", number, "diversity of targets: the same for them"),
    ("diversity_ratio", number, "the former over the latter"),
)
HEADS = ["", "R²", "mean difference", "bias", "agreement"]


def tables(run: Run, chapter: str) -> tuple[list[str], list[str]]:
    """The tables of a chapter: those before its figures and those after."""
    if chapter == "behaviour" and run.evaluations:
        return _measures(run), []
    if chapter == "lines":
        return _betweens(run), [*(_starts(run, climb) for climb in run.climbs if climb.arch), *_samples(run.samples)]
    return [], []


def _measures(run: Run) -> list[str]:
    """Tables of figures: by split, by architecture, of the baselines."""
    found = run.evaluations
    rows = []
    for key, form, name in FIGURES:
        values = [_value(one.figures, key) for one in found.values()]
        if any(finite(value) is not None for value in values):
            rows.append([name, *map(form, values)])
    caption = "Figures by split of the zoo. All accuracies are on the task's test images."
    told = [table(["", *(f"{split} split" for split in found)], rows, caption)]
    main = next(iter(found.values()))
    classes = part(main.figures, "per_class")
    if len(classes) > 1:
        told += _by_architecture(main, classes)
    others = part(main.figures, "baselines")
    if others:
        told.append(_baselines(main, others))
    return told


def _value(figures: Mapping[str, Any], key: str) -> Any:
    """What a key names; 'part.key' names one of a part."""
    outer, _, inner = key.rpartition(".")
    return part(figures, outer).get(inner) if outer else figures.get(key)


def _by_architecture(main: Evaluation, classes: Mapping[str, Any]) -> list[str]:
    """How well each architecture is given back, and whether its predicted networks are networks of their own."""
    heads = ["", "parameters", "members", "ClassId", "targets' accuracy", "predicted", HEADS[2], HEADS[4], "R²"]
    rows, alike = [], []
    for name in classes:
        told = part(classes, name)
        counts = count(told.get("parameters")), count(told.get("members"))
        shares = [percent(told.get(key)) for key in ("classid_accuracy", "accuracy_target", "accuracy_predicted")]
        r2, difference, bias, agreement = _own(told)
        rows.append([name, *counts, *shares, difference, agreement, r2])
        overlaps = [percent(_value(told, f"identity.jaccard_{key}")) for key in ("own", "peers")]
        distances = [number(told.get(key)) for key in ("diversity", "zoo_diversity", "diversity_ratio")]
        alike.append([name, bias, signed_points(_value(told, "identity.own_minus_peers")), *overlaps, *distances])
    caption = f"By architecture, {main.split} split. ClassId is the share decoded as the architecture that they are."
    own = (
        f"Whether predicted networks are networks of their own, {main.split} split: agreement with the own target minus agreement "
        "with other members within a point of its accuracy, the overlap of mistakes with both, and the mean distance of pairs. "
        "Where predicted networks lie much closer together than their targets, they are nearly one network."
    )
    titles = ["", "bias", "own over others", "mistakes, own", "others", "distance, predicted", "targets", "ratio"]
    return [table(heads, rows, caption), table(titles, alike, own)]


def _own(told: Mapping[str, Any]) -> list[str]:
    return [
        number(told.get("r2"), 3),
        points(told.get("mae")),
        signed_points(told.get("bias")),
        percent(told.get("agreement")),
    ]


def _baselines(main: Evaluation, others: Mapping[str, Any]) -> str:
    rows = [["the space", *_own(main.figures), "networks decoded from their latents"]]
    for name in baseline_names(others):
        told = part(others, name)
        shown = name if told else f"{name} (missing)"
        rows.append([shown, *_own(told), f"{BASELINES.get(name, NOTHING)}{_scale(told.get('scale'))}"])
    caption = (
        f"The space and baselines, {main.split} split: what each answers for the same targets. Whatever they choose, they choose "
        "on validation images; the figures are of test images."
    )
    return table([*HEADS, "what answers"], rows, caption, glossed=True)


def _scale(value: Any) -> str:
    """Of the noise that is added, one figure or one for each architecture."""
    found = [finite(each) for each in value] if isinstance(value, list) else [finite(value)]
    known = sorted({number(each) for each in found if each is not None})
    if not known:
        return ""
    return f" ({known[0]}{f' to {known[-1]}' if len(known) > 1 else ''} of each layer's spread)"


def _betweens(run: Run) -> list[str]:
    """What lies at the factors of Eq. 12, by split."""
    told = []
    for split, found in run.evaluations.items():
        between = found.classes.between if found.classes else []
        if not between:
            continue
        heads = ["", "γ", "decoded as it", "accuracy", "trained ones", "ratio", "learnt part off", "distilled"]
        caption = (
            f"Between the smallest and the largest architecture, {split} split: networks decoded from latents at the factors "
            "γ of Eq. 12 between their members, as the ClassId head reads them, beside normally trained networks of the "
            "architecture that is meant. Mean accuracies on the test images. Two controls: the same decoded with the decoder's "
            "learnt part off (scale 0), and a network that learnt from the space's teacher for as many steps as the space, "
            "where the architecture was never shown."
        )
        told.append(table(heads, [_between(each) for each in between], caption))
    return told


def _between(told: Between) -> list[str]:
    shares = [percent(value) for value in (told.recognised, told.accuracy, told.trained)]
    return [
        _marked(told.arch, told.shown),
        number(told.gamma),
        *shares,
        number(told.ratio, 3),
        percent(told.scale_zero),
        percent(told.distilled),
    ]


def _starts(run: Run, climb: Climb) -> str:
    """Table I of NetSpace for one optimisation: a column for each start."""
    heads = [""]
    for name, arch in zip(climb.starts, climb.arch, strict=True):
        heads.append(_marked(name if arch in name else f"{arch}: {name}", arch not in run.unseen))
    values = (("the network", climb.network), ("decoded", climb.before), ("optimised", climb.after))
    rows = [[name, *map(percent, each.tolist())] for name, each in values]
    caption = (
        f"Descent on latents, taught by {taught_by(climb)}: accuracy on the test images of the networks that the starts were "
        f"encoded from, of those decoded from their latents, and of those after at most {count(climb.steps[-1])} steps. "
        "NetSpace, Tab. I."
    )
    return table(heads, rows, caption)


def _marked(name: str, shown: bool) -> str:
    return name if shown else f"{name} (never shown)"


def _samples(samples: Sequence[Sample]) -> list[str]:
    """Networks that were drawn, beside trained ones."""
    if not samples:
        return []
    heads = ["", "drawn", "from", "accuracy", "trained ones", "novelty", "decoded as it"]
    rows = []
    for told in samples:
        shares = [percent(value) for value in (told.accuracy, told.trained, told.novelty, told.recognised)]
        rows.append([_marked(told.arch, told.shown), count(told.count), told.fit, *shares])
    caption = (
        "New networks drawn from the distribution of latents of an architecture; mean accuracies on the test images. Novelty "
        "is the share of images that they answer otherwise than the zoo's training network with the nearest weights, which "
        "the space has not seen where the architecture was never shown."
    )
    return [table(heads, rows, caption)]


def table(head: Sequence[str], rows: Iterable[Sequence[str]], caption: str, glossed: bool = False) -> str:
    """A table of numbers; if `glossed`, its first row is set apart and its last column is text."""
    kinds = ["n"] * (len(head) - 1 - glossed) + ["gloss"] * glossed
    heads = "".join(
        f'<th scope="col" class="{kind}">{escape(name)}</th>' for name, kind in zip(head[1:], kinds, strict=True)
    )
    body = []
    for place, (name, *values) in enumerate(rows):
        cells = "".join(f'<td class="{kind}">{escape(value)}</td>' for value, kind in zip(values, kinds, strict=True))
        own = ' class="own"' if glossed and not place else ""
        body.append(f'<tr{own}><th scope="row">{escape(name)}</th>{cells}</tr>')
    return (
        f'<div class="table" role="region" tabindex="0" aria-label="{escape(caption)}">'
        f"<table><caption>{escape(caption)}</caption><thead><tr><td></td>{heads}</tr></thead>"
        f"<tbody>{''.join(body)}</tbody></table></div>"
    )
