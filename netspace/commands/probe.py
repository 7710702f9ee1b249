"""`netspace probe`: a column of a zoo's table predicted from what describes its members.

Ridge regression and gradient boosting on latents, on statistics of weights by layer (Unterthiner et al., 2020) and on answers,
judged on repeated splits by units (`Collection.units`: training runs or signals), with bootstrap intervals. Axes: M members, N V T of training, validation and test, F features.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np
import torch
from scipy import stats

from netspace.commands.collection import Collection, opened
from netspace.commands.properties import regressed, scalings
from netspace.errors import NetspaceError, UsageError, first_line
from netspace.metrics import r2
from netspace.progress import progress
from netspace.results.members import Interval, Prediction, Probe, Probing
from netspace.streams import Stream, generator
from netspace.training.setup import training_rows

SOURCES = ("latents", "statistics", "answers")
MODELS = ("ridge", "boosting")
REFERENCE = ("statistics", "boosting")  # that others are compared with
MAX_MEMBERS = 5000  # that are used, drawn at random from more
MAX_AXES = 64  # principal axes that boosting gets of more features than that, except of statistics
TEST, VALIDATION = 0.25, 0.2  # fractions of units; validation is of the rest
BOOTSTRAPS = 400  # samples of members and splits behind an interval
ROUNDS = 100  # of boosting, at most: validation chooses how many
MIN_UNITS = 8
MAX_SEED = 1 << 32  # of scikit-learn's random states, exclusive; a split has a seed of its own


def probe(
    path: Path,
    target: str = "accuracy_test",
    splits: int = 10,
    files: Sequence[str] = (),
    zoo_path: Path | None = None,
    seed: int = 0,
    max_members: int = MAX_MEMBERS,
    device: str = "cpu",
) -> Probing:
    """Measure how well a column of the table is predicted from members' latents, statistics of weights and answers.

    `path` is the run of a space, or a zoo, which has no latents. In each of `splits` random splits a quarter of the training
    runs are test runs; the strength of the penalty and the rounds of boosting are chosen on other runs. Networks that are
    signals are split by signals, a mesh and its variants being one. `files` are networks for which models fitted to all members predict the column.

    Raises:
        UsageError: The target is no column of numbers, the seed is out of range, there are too few runs or splits, or a file is no network.
        NetspaceError: The run or zoo cannot be read.

    >>> result = probe(run, splits=2)
    >>> result.probes[0].source, result.probes[0].model
    ('latents', 'ridge')
    """
    if splits < 2:
        raise UsageError(f"an interval needs at least 2 splits, found --splits {splits}")
    if not 0 <= seed <= MAX_SEED - splits:
        raise UsageError(f"--seed was expected to be 0 to {MAX_SEED - splits:,} for {splits:,} splits, found {seed}")
    with opened(path, zoo_path, device) as members:
        values = members.column(target)
        positions = _chosen(values, max_members, seed)
        values, units, runs = values[positions], members.units[positions], len(np.unique(members.runs[positions]))
        if (count := len(np.unique(units))) < MIN_UNITS:
            noun = "training runs" if count == runs else "signals"
            raise UsageError(
                f"{target} is known of {len(positions)} members of {count} {noun} in {path}, but splits by {noun} need at least "
                f"{MIN_UNITS}"
            )
        if np.ptp(values) == 0:
            raise UsageError(f"{target} is {values[0]:g} for all members of {path}: there is nothing to predict")
        features, left_out = _features(members, positions)
        networks = [members.one(file) for file in files]
        described = {
            source: np.concatenate(
                [_with_arch(members, members.describe(source, each), each.arch_id) for each in networks]
            )
            for source in (features if networks else ())
        }
        seen = _seen(members, positions)
    drawn = [_split(units, seed + number) for number in range(splits)]
    probes = _measured(features, values, units, drawn, seed)
    best = max(probes, key=lambda each: -math.inf if each.kendall.mean is None else each.kendall.mean)
    predictions = None
    if networks:
        fitted = _predicted(features, described, values, units, seed)
        predictions = [
            Prediction(
                file=each.name,
                arch=each.group.id,
                best=float(fitted[best.source, best.model][row]),
                all={f"{source} + {model}": float(found[row]) for (source, model), found in fitted.items()},
            )
            for row, each in enumerate(networks)
        ]
    return Probing(
        path=str(path),
        target=target,
        members=len(positions),
        runs=runs,
        splits=splits,
        seen=seen,
        target_mean=float(values.mean()),
        target_std=float(values.std()),
        probes=probes,
        best=f"{best.source} + {best.model}",
        left_out=left_out,
        **({} if predictions is None else {"predictions": predictions}),
    )


def _chosen(values: np.ndarray, most: int, seed: int) -> np.ndarray:
    """Return the positions of members whose value is known, at most `most` of them, ascending."""
    known = np.flatnonzero(np.isfinite(values))
    order = torch.randperm(len(known), generator=generator(seed, Stream.PROBE_MEMBERS)).numpy()
    return np.sort(known[order[:most]])


def _seen(members: Collection, positions: np.ndarray) -> int:
    """Return how many of the members the space was trained on."""
    if members.space is None:
        return 0
    trained = np.zeros(members.count, bool)
    for each in members.groups:
        rows = training_rows(members.space.recipe, members.zoo, each.group).numpy()
        trained[each.start : each.start + len(each.rows)] = np.isin(each.rows, rows)
    return int(trained[positions].sum())


def _features(members: Collection, positions: np.ndarray) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    """Return the features (M, F) of members by source, and the reasons of sources that cannot be computed."""
    features, left_out = {}, {}
    for source in SOURCES:
        try:
            features[source] = _with_arch(members, members.described(source, positions), members.arch_ids[positions])
        except NetspaceError as error:
            left_out[source] = first_line(error)
    return features, left_out


def _with_arch(members: Collection, values: np.ndarray, arch_ids: np.ndarray) -> np.ndarray:
    """Return features with one column more for each architecture, which is 1 for its members, where there are several."""
    return (
        np.concatenate([values, np.eye(len(members.groups), dtype=np.float32)[arch_ids]], 1)
        if members.multi
        else values
    )


def _split(units: np.ndarray, seed: int, test: float = TEST) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return the rows of training, validation and test members; those of one unit are all on one side."""
    from sklearn.model_selection import GroupShuffleSplit

    rows = np.arange(len(units))
    rest, tested = rows, rows[:0]
    if test:
        rest, tested = next(GroupShuffleSplit(1, test_size=test, random_state=seed).split(rows, groups=units))
    train, val = next(GroupShuffleSplit(1, test_size=VALIDATION, random_state=seed).split(rest, groups=units[rest]))
    return rest[train], rest[val], tested


def _fit(
    model: str, source: str, features: Sequence[np.ndarray], values: np.ndarray, val_values: np.ndarray
) -> np.ndarray:
    """Return what a model fitted to training members (N, F) predicts for test members, chosen by validation members."""
    scaled = scalings(*features)
    if model == "ridge":
        return regressed(scaled, values, val_values)
    if source == "statistics":  # trees do not care for scales
        return boosted(features, values, val_values)
    return boosted(_axes(scaled[1]), values, val_values)


def _axes(features: Sequence[np.ndarray]) -> list[np.ndarray]:
    """Return features (., F) along the first `MAX_AXES` principal axes of the first (N, F), if F is larger."""
    first = features[0]
    if first.shape[1] <= MAX_AXES:
        return list(features)
    _, vectors = np.linalg.eigh(first.T @ first)
    return [each @ vectors[:, -MAX_AXES:] for each in features]


def boosted(features: Sequence[np.ndarray], values: np.ndarray, val_values: np.ndarray) -> np.ndarray:
    """Return what gradient boosting fitted to training members predicts for test members (T,).

    `features` are of training, validation and test members, (N, F), (V, F) and (T, F). The number of rounds, at most
    `ROUNDS`, is that of the least squared error on validation members.
    """
    from sklearn.ensemble import HistGradientBoostingRegressor

    train, val, test = features
    model = HistGradientBoostingRegressor(
        max_iter=ROUNDS, learning_rate=0.1, max_leaf_nodes=15, min_samples_leaf=min(20, max(len(train) // 10, 1)),
        early_stopping=False, random_state=0,
    )  # fmt: skip
    model.fit(train, values)
    errors = [float(np.square(each - val_values).mean()) for each in model.staged_predict(val)]
    best = int(np.argmin(errors))
    return np.asarray(next(islice(model.staged_predict(test), best, None)))


def _measured(
    features: dict[str, np.ndarray],
    values: np.ndarray,
    units: np.ndarray,
    splits: Sequence[tuple[np.ndarray, np.ndarray, np.ndarray]],
    seed: int,
) -> list[Probe]:
    """Return R2 and tau of each model on each source, over the splits of members with `values` (M,) and `units` (M,)."""
    predicted: dict[tuple[str, str], list[np.ndarray]] = {}
    with progress("probe", len(splits) * len(features) * len(MODELS), "fits") as bar:
        for train, val, test in splits:
            for source, own in features.items():
                for model in MODELS:
                    found = _fit(model, source, (own[train], own[val], own[test]), values[train], values[val])
                    predicted.setdefault((source, model), []).append(found)
                    bar.advance()
    tests = [test for _, _, test in splits]
    draws = Draws.of(units, len(splits), seed)
    means = {key: np.mean([scores(p, values[test]) for p, test in zip(found, tests, strict=True)], axis=0)
             for key, found in predicted.items()}  # fmt: skip
    drawn = {key: draws.scores(found, [values[test] for test in tests], tests) for key, found in predicted.items()}
    probes = []
    for key, (mean_r2, mean_tau) in means.items():
        versus = {}
        if REFERENCE in means and key != REFERENCE:
            difference = mean_tau - means[REFERENCE][1]
            versus = {"kendall_difference": interval(difference, drawn[key][:, 1] - drawn[REFERENCE][:, 1])}
        probes.append(
            Probe(
                source=key[0],
                model=key[1],
                features=features[key[0]].shape[1],
                r2=interval(mean_r2, drawn[key][:, 0]),
                kendall=interval(mean_tau, drawn[key][:, 1]),
                **versus,
            )
        )
    return probes


def scores(predicted: np.ndarray, values: np.ndarray) -> tuple[float, float]:
    """Return R2 and Kendall's tau-b of predictions (T,) of values (T,); NaN where they do not vary."""
    if len(values) < 2 or np.ptp(values) == 0:
        return math.nan, math.nan
    return r2(predicted, values), float(stats.kendalltau(predicted, values).statistic)


@dataclass(frozen=True)
class Draws:
    """Bootstrap samples of members and splits, K of each: the same for all models, so that differences are paired.

    Axes: K samples, M members, J splits. Units are drawn, with all of their members, which are not independent; splits
    test overlapping members, so that a sample has the same members in all of its splits.
    """

    members: np.ndarray  # (K, M) how often each is in a sample
    splits: np.ndarray  # (K, J) indices of those in a sample

    @classmethod
    def of(cls, units: np.ndarray, splits: int, seed: int, count: int = BOOTSTRAPS) -> Draws:
        """Return `count` samples of members with `units` (M,), and of `splits` splits."""
        names, own = np.unique(units, return_inverse=True)
        random = generator(seed, Stream.PROBE_BOOTSTRAP)
        drawn = torch.randint(len(names), (count, len(names)), generator=random).numpy()
        times = np.stack([np.bincount(row, minlength=len(names)) for row in drawn])
        return cls(times[:, own], torch.randint(splits, (count, splits), generator=random).numpy())

    def scores(
        self, predicted: Sequence[np.ndarray], values: Sequence[np.ndarray], tests: Sequence[np.ndarray]
    ) -> np.ndarray:
        """Return R2 and tau (K, 2) of each sample, means over its splits; NaN where none of them has a score.

        Predictions and values (T,) of each split are those of its test members, whose rows are `tests`.
        """
        result = np.full((len(self.members), 2), np.nan)
        for row, (times, chosen) in enumerate(zip(self.members, self.splits, strict=True)):
            total = []
            for split, weight in zip(*np.unique(chosen, return_counts=True), strict=True):
                again = np.repeat(np.arange(len(tests[split])), times[tests[split]])
                each = scores(predicted[split][again], values[split][again])
                if np.isfinite(each).all():
                    total += [each] * int(weight)
            if total:
                result[row] = np.mean(total, axis=0)
        return result


def interval(mean: float, drawn: np.ndarray) -> Interval:
    """Return a mean over splits with its 95 % interval: percentiles of bootstrap samples `drawn` (K,) (Efron and Tibshirani, 1993).

    It stays where the figure can be: tau from -1 to 1, R2 up to 1. None where the mean is not known.
    """
    known = drawn[np.isfinite(drawn)]
    if not math.isfinite(mean) or not len(known):
        return Interval(mean=None, low=None, high=None)
    low, high = np.percentile(known, [2.5, 97.5])
    return Interval(mean=float(mean), low=float(low), high=float(high))


def _predicted(
    features: dict[str, np.ndarray], described: dict[str, np.ndarray], values: np.ndarray, units: np.ndarray, seed: int
) -> dict[tuple[str, str], np.ndarray]:
    """Return what models fitted to all members predict for networks described by (T, F), by source and model."""
    train, val, _ = _split(units, seed, test=0)
    return {
        (source, model): _fit(model, source, (own[train], own[val], described[source]), values[train], values[val])
        for source, own in features.items()
        for model in MODELS
    }
