"""The tables of the page: figures by split and by architecture, baselines, points between, starts, samples, bits.

A table appears only if its figures are known. Cells are plain text; the template escapes them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from netspace.report.drawing import MISSING, count, finite, number, percent, points, signed_points, small
from netspace.report.figures_behaviour import BASELINES, baseline_names
from netspace.report.figures_lines import taught_by
from netspace.report.runs import Evaluated, Fitted, Run
from netspace.results.lines import Between
from netspace.results.spaces import Baseline, Behaviour, ClassFigures, Measures, Optimization, Sampling


@dataclass(frozen=True)
class Table:
    """Rows of cells; the first cell of a row is its name."""

    head: Sequence[str]
    rows: Sequence[Sequence[str]]
    caption: str
    glossed: bool = False  # whether the first row is emphasised and the last column is text


FIGURES: tuple[tuple[str, Callable[[float | None], str], str], ...] = (
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
    ("kl", small, "KL divergence from target to prediction, nats"),
    ("classid_accuracy", percent, "architecture recognised (ClassId)"),
    ("diversity", number, "diversity of predictions: mean L2 distance of pairs"),
    ("zoo_diversity", number, "diversity of targets: the same for them"),
    ("diversity_ratio", number, "the former over the latter"),
)
HEADS = ["", "R²", "mean difference", "bias", "agreement"]
SIGNAL_HEADS = ["", "accuracy", "agreement", "KL"]
NETWORKS = {
    "original": "the original",
    "original_quantised": "the original in {bits} bits",
    "reconstructed": "reconstructed",
    "quantised": "reconstructed, predictor in {bits} bits",
}


def behaviour_tables(run: Run) -> list[Table]:
    """Return tables of figures by split, by architecture, and of the baselines."""
    main = run.main
    if main is None:
        return []
    rows = []
    signals, score = main.figures.of_signals, main.figures.score
    for key, form, title in FIGURES:
        name = score.word("KL") if score and key == "kl" else title
        if key == "r2" and signals:
            continue
        values = [_value(each.figures, key) for each in run.evaluations.values()]
        if any(finite(value) is not None for value in values):
            rows.append([name, *map(form, values)])
    caption = "Figures by split of the zoo. All accuracies are on the task's test images."
    if score and score.meaning:
        caption += f" {(score.noun or score.name).capitalize()}: {score.meaning}."
    if signals:
        caption += (
            " Each network was fitted to a signal of its own: accuracies say how well, and those of targets hardly differ, so that "
            "there is no R² of them."
        )
    tables = [Table(["", *(f"{split} split" for split in run.evaluations)], rows, caption)]
    if len(main.figures.per_class) > 1:
        tables += _by_architecture(main, main.figures.per_class)
    if main.figures.baselines:
        tables.append(_baselines(main, main.figures.baselines))
    return tables


def _value(figures: Behaviour, key: str) -> float | None:
    """Return the figure called `key`; 'identity.key' names one of the identity."""
    outer, _, inner = key.rpartition(".")
    return getattr(figures.identity if outer else figures, inner)


def _by_architecture(main: Evaluated, classes: Mapping[str, ClassFigures]) -> list[Table]:
    """Return tables of how well each architecture is reconstructed, and whether its predictions differ from each other."""
    heads = ["", "parameters", "members", "ClassId", "targets' accuracy", "predicted", HEADS[2], HEADS[4], "R²"]
    rows, identities = [], []
    for name, each in classes.items():
        accuracies = map(percent, (each.classid_accuracy, each.accuracy_target, each.accuracy_predicted))
        r2, difference, bias, agreement = _own(each)
        rows.append([name, count(each.parameters), count(each.members), *accuracies, difference, agreement, r2])
        overlaps = map(percent, (each.identity.jaccard_own, each.identity.jaccard_peers))
        distances = map(number, (each.diversity, each.zoo_diversity, each.diversity_ratio))
        identities.append([name, bias, signed_points(each.identity.own_minus_peers), *overlaps, *distances])
    caption = f"By architecture, {main.split} split. ClassId is the fraction decoded as their own architecture."
    own = (
        f"Whether predicted networks are networks of their own, {main.split} split: agreement with the own target minus agreement "
        "with other members within a point of its accuracy, the overlap of mistakes with both, and the mean distance of pairs. "
        "Where predicted networks lie much closer together than their targets, they are nearly one network."
    )
    titles = ["", "bias", "own over others", "mistakes, own", "others", "distance, predicted", "targets", "ratio"]
    return [Table(heads, rows, caption), Table(titles, identities, own)]


def _own(figures: Measures) -> list[str]:
    return [number(figures.r2, 3), points(figures.mae), signed_points(figures.bias), percent(figures.agreement)]


def _of_signal(figures: Measures) -> list[str]:
    return [percent(figures.accuracy_predicted), percent(figures.agreement), small(figures.kl)]


def _baselines(main: Evaluated, others: Mapping[str, Baseline | None]) -> Table:
    form, heads = (_of_signal, SIGNAL_HEADS) if main.figures.of_signals else (_own, HEADS)
    rows = [["the space", *form(main.figures), "networks decoded from their latents"]]
    if refined := main.figures.refined:
        rows.append(
            [
                "refined",
                *form(refined),
                f"the same after {count(refined.steps)} steps on the latents, by training inputs",
            ]
        )
    for name in baseline_names(others):
        baseline = others[name] or Baseline()
        label = name if baseline.payload() else f"{name} (missing)"
        rows.append([label, *form(baseline), f"{BASELINES.get(name, MISSING)}{_scale(baseline.scale)}"])
    caption = (
        f"The space and baselines, {main.split} split, for the same targets. Baselines are chosen on validation images; the "
        "figures are of test images."
    )
    return Table([*heads, "network"], rows, caption, glossed=True)


def _scale(value: float | list[float] | None) -> str:
    """Return the scale of the noise, or the range over architectures, in parentheses."""
    known = sorted(
        {number(each) for each in (value if isinstance(value, list) else [value]) if finite(each) is not None}
    )
    if not known:
        return ""
    return f" ({known[0]}{f' to {known[-1]}' if len(known) > 1 else ''} of each layer's spread)"


def between_tables(run: Run) -> list[Table]:
    """Return a table of each split: networks at the factors of Eq. 12."""
    heads = ["", "γ", "decoded as it", "accuracy", "trained ones", "ratio", "learnt part off", "distilled"]
    return [
        Table(
            heads,
            [_between(arch, each) for arch, each in evaluated.figures.between.items()],
            f"Between the smallest and the largest architecture, {split} split: networks decoded from latents at the factors "
            "γ of Eq. 12 between their members, as the ClassId head reads them, and normally trained networks of the same "
            "architecture. Mean accuracies on the test images. Two controls: the same decoded with the decoder's learnt part off "
            "(scale 0), and, for an architecture not seen in training, a network distilled from the space's teacher for as many "
            "steps as the space was trained.",
        )
        for split, evaluated in run.evaluations.items()
        if evaluated.figures.between
    ]


def _between(arch: str, each: Between) -> list[str]:
    return [
        _marked(arch, each.shown),
        number(each.gamma),
        *map(percent, (each.classid_accuracy, each.accuracy, each.accuracy_zoo)),
        number(each.ratio, 3),
        percent(each.accuracy_scale_zero),
        percent(each.accuracy_distilled),
    ]


def search_tables(run: Run) -> list[Table]:
    """Return tables of optimisations and samples."""
    return [*(_starts(run, each) for each in run.optimizations.values() if each.arch), *_samples(run.samples)]


def _starts(run: Run, optimization: Optimization) -> Table:
    """Return NetSpace's Tab. I for one optimisation: a column for each start."""
    heads = [""]
    for name, arch in zip(optimization.starts, optimization.arch, strict=True):
        heads.append(_marked(name if arch in name else f"{arch}: {name}", arch not in run.unseen))
    rows = [
        [name, *map(percent, values)]
        for name, values in (
            ("the network", optimization.accuracy_network),
            ("decoded", optimization.accuracy_before),
            ("optimised", optimization.accuracy_after),
        )
    ]
    caption = (
        f"Descent on latents, taught by {taught_by(optimization)}: accuracy on the test images of the networks that the starts were "
        f"encoded from, of those decoded from their latents, and of those after at most {count(optimization.curve[-1].step)} steps. "
        "NetSpace, Tab. I."
    )
    return Table(heads, rows, caption)


def _marked(name: str, seen: bool | None) -> str:
    return name if seen else f"{name} (unseen)"


def _samples(samples: Sequence[Sampling]) -> list[Table]:
    """Return a table of networks that were drawn, compared with trained ones."""
    if not samples:
        return []
    heads = ["", "drawn", "from", "accuracy", "trained ones", "novelty", "decoded as it"]
    rows = []
    for each in samples:
        measured = each.sampled.accuracy, each.zoo_accuracy, each.sampled.novelty, each.classid_accuracy
        rows.append([_marked(each.arch, each.shown), count(each.count), each.fit, *map(percent, measured)])
    caption = (
        "New networks drawn from the distribution of latents of an architecture; mean accuracies on the test images. Novelty "
        "is the fraction of images that they answer otherwise than the zoo's training network with the nearest weights, which "
        "the space has not seen if the architecture is marked as unseen."
    )
    return [Table(heads, rows, caption)]


def gap_tables(fitted: Fitted) -> list[Table]:
    """Return a table of accuracy and cross-entropy of both networks on training and test images."""
    gaps = fitted.analysis.generalisation if fitted.analysis else None
    if gaps is None:
        return []
    rows = [
        [
            name,
            percent(gap.accuracy_train, 2),
            percent(gap.accuracy_test, 2),
            MISSING if finite(gap.gap_accuracy) is None else f"{number(100 * (gap.gap_accuracy or 0), 2)} points",
            *(number(value, 4) for value in (gap.loss_train, gap.loss_test, gap.gap_loss)),
        ]
        for name, gap in (("original", gaps.original), ("reconstructed", gaps.reconstructed))
    ]
    caption = (
        f"The generalisation gap: accuracy and cross-entropy (nats) on {count(gaps.training_images)} training images and "
        "on all test images, and the difference."
    )
    return [Table(["", "training", "test", "gap", "loss, training", "loss, test", "gap of loss"], rows, caption)]


def bit_tables(fitted: Fitted) -> list[Table]:
    """Return a table for each number of bits."""
    heads = ["", "bytes", "of the original's", "relative error", "accuracy", "same answer"]
    return [
        Table(
            heads,
            [
                [
                    NETWORKS[kind].format(bits=bits),
                    count(each.bytes),
                    percent(each.bytes / figures.bytes_original) if figures.bytes_original else MISSING,
                    number(each.relative_error, 3),
                    percent(each.accuracy, 2),
                    percent(each.agreement),
                ]
                for kind, each in figures.networks.items()
            ],
            f"The predictor's weights in {bits} bits, compared with the original's own weights in as many.",
        )
        for bits, figures in fitted.quantised.items()
    ]
