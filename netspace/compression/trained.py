"""The ways of `compress fit` that are trained: short to be compared, whole if they are the best."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from torch import Tensor

from netspace.compression.coordinate import ORDERS, way_of
from netspace.compression.ways import (
    COMPENSATED,
    UNTRAINED,
    Candidate,
    Make,
    best_pruned,
    compensated,
    container_of,
    finest,
    plan,
    rounded_file,
)
from netspace.compression.work import CannotFit, Work
from netspace.models.coded import Coded, Way
from netspace.networks.rounding import Codes, round_step
from netspace.precision import Precision
from netspace.results.budget import Tried
from netspace.training.coded import CodedConfig, Start, train_coded

Candidates = dict[str, Candidate]  # by the names of their files
FIRST = {False: 1.15, True: 1.6}  # budgets that the file has when a short, or whole, training begins
FIRST_BITS = 4  # of a weight, that the file has at least when a whole training begins


def short_fits(work: Work, names: Sequence[str]) -> Candidates:
    """Return the ways that are trained a little, to be compared with the others."""
    if not work.config.short_steps or not work.judge.trainable:
        return {}
    steps = work.config.short_steps
    return {f"{name}-short": Candidate(name, _trained(name, False), steps) for name in UNTRAINED if name in names}


def whole_fits(work: Work, best: Tried) -> Candidates:
    """Return what is trained whole, given the best of what was tried."""
    if best.way == "coordinate":
        order = next(order for order in ORDERS if best.setting.startswith(f"{order},"))
        made = Candidate("coordinate", way_of(order, whole=True), work.config.predictor_whole)
        return {f"coordinate-{order}-whole": made}
    if not work.config.steps or not work.judge.trainable:
        return {}
    return {f"{best.way}-whole": Candidate(best.way, _trained(best.way, True), work.config.steps)}


def predictors(work: Work) -> Candidates:
    """Return the coordinate networks that are fitted a little, one for each order."""
    steps = work.config.predictor_steps
    return {f"coordinate-{order}": Candidate("coordinate", way_of(order), steps) for order in ORDERS}


def _trained(way: str, whole: bool) -> Make:
    """Return a way that trains integers to fit, from the network's own weights; `mixed` from those that make up for errors."""

    def make(work: Work, limit: int, path: Path) -> str:
        begun = compensated(work, limit) if way == "mixed" else None
        tensors: dict[str, Tensor] = {}
        if begun is None:
            values = sum(value.numel() for value in work.matrices().values())
            first = max(round(FIRST[whole] * limit), FIRST_BITS * values // 8 if whole else 0)
            codes, setting = first_codes(work, way, limit, first)
        else:  # in the bytes that it has to have already
            tensors, setting = begun[0].reconstruct(), f"learnt steps, {COMPENSATED} at first"
            codes = codes_of(begun[0])
        kind: Way = "rounded" if way == "rounded" else "coded"
        start = Start(
            work.original,
            codes,
            limit,
            lambda codes, state: container_of(work, codes, kind, state),
            work.score,
            work.judge.inputs.train,
            work.judge.outputs,
            tensors,
        )
        config = CodedConfig(
            steps=work.config.steps if whole else work.config.short_steps,
            images=work.config.images,
            learnt_steps="rows" if way == "rounded" else "each",
            bits=int(setting.split()[0]) if way == "rounded" else None,
            sparse=way == "pruned",
            precision=_precision(work),
            seed=work.config.seed,
        )
        made = train_coded(start, config, path.with_suffix(""), work.judge.device)
        if (size := made.file_bytes()) > limit:
            raise CannotFit(f"trained it takes {size:,} bytes", size)
        made.save(path)
        return setting

    return make


def codes_of(container: Coded) -> dict[str, Codes]:
    """Return the integers of a file."""
    return {name: each.value for name, each in container.entries.items() if isinstance(each.value, Codes)}


def _precision(work: Work) -> Precision:
    """Return the precision of a training; relative errors of values are often smaller than what 16 bits resolve."""
    chosen = work.config.precision
    return "float32" if chosen == "auto" and not work.judge.outputs.logits else chosen


def first_codes(work: Work, way: str, limit: int, first: int) -> tuple[dict[str, Codes], str]:
    """Return the integers that training begins with, and what they are in words.

    Their file has about `first` bytes; that of rounded ones, whose size does not change, has at most `limit`.
    """
    if way == "rounded":
        made, bits = rounded_file(work, limit)
        return codes_of(made), f"{bits} bits"
    fraction = best_pruned(work, limit)[2] if way == "pruned" else 0.0
    weights, units = plan(work, way, fraction)

    def rounded(log_step: float) -> dict[str, Codes]:
        return {name: round_step(value, 2**log_step * units[name]) for name, value in weights.items()}

    def file(log_step: float) -> Coded:
        return container_of(work, rounded(log_step), "coded")

    codes = rounded(finest(file, first)[1])
    return codes, f"{100 * fraction:.0f} % zero at least" if fraction else "learnt steps"
