"""`netspace probe`: a column of a zoo's table predicted from what describes its members.

Ridge regression and gradient boosting on latents, on statistics of weights by layer (Unterthiner et al., 2020) and on answers,
judged on repeated splits by training runs. Axes: M members, N V T of training, validation and test, F features.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
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
from netspace.results.probes import Interval, Prediction, Probe, Probing
from netspace.streams import Stream, generator
from netspace.training.setup import training_rows

SOURCES = ("latents", "statistics", "answers")
MODELS = ("ridge", "boosting")
REFERENCE = ("statistics", "boosting")  # that others are compared with
MAX_MEMBERS = 5000  # that are used, drawn at random from more
MAX_AXES = 64  # principal axes that boosting gets of more features than that, except of statistics
TEST, VALIDATION = 0.25, 0.2  # fractions of runs; validation is of the rest
ROUNDS = 100  # of boosting, at most: validation chooses how many
MIN_RUNS = 8
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
    runs are test runs; the strength of the penalty and the rounds of boosting are chosen on other runs. `files` are networks for
    which models fitted to all members predict the column.

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
        values, runs = values[positions], members.runs[positions]
        if len(np.unique(runs)) < MIN_RUNS:
            raise UsageError(
                f"{target} is known of {len(positions)} members of {len(np.unique(runs))} training runs in {path}, but splits by "
                f"runs need at least {MIN_RUNS}"
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
    drawn = [_split(runs, seed + number) for number in range(splits)]
    probes = _measured(features, values, drawn)
    best = max(probes, key=lambda each: -math.inf if each.kendall.mean is None else each.kendall.mean)
    predictions = None
    if networks:
        fitted = _predicted(features, described, values, runs, seed)
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
        runs=len(np.unique(runs)),
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


def _split(runs: np.ndarray, seed: int, test: float = TEST) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return the rows of training, validation and test members; those of one run are all on one side."""
    from sklearn.model_selection import GroupShuffleSplit

    rows = np.arange(len(runs))
    rest, tested = rows, rows[:0]
    if test:
        rest, tested = next(GroupShuffleSplit(1, test_size=test, random_state=seed).split(rows, groups=runs))
    train, val = next(GroupShuffleSplit(1, test_size=VALIDATION, random_state=seed).split(rest, groups=runs[rest]))
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
    features: dict[str, np.ndarray], values: np.ndarray, splits: Sequence[tuple[np.ndarray, np.ndarray, np.ndarray]]
) -> list[Probe]:
    """Return R2 and tau of each model on each source, over the splits."""
    scores: dict[tuple[str, str], list[tuple[float, float]]] = {}
    with progress("probe", len(splits) * len(features) * len(MODELS), "fits") as bar:
        for train, val, test in splits:
            for source, own in features.items():
                for model in MODELS:
                    predicted = _fit(model, source, (own[train], own[val], own[test]), values[train], values[val])
                    tau = float(stats.kendalltau(predicted, values[test]).statistic)
                    scores.setdefault((source, model), []).append((r2(predicted, values[test]), tau))
                    bar.advance()
    tested = np.mean([len(test) / (len(train) + len(val)) for train, val, test in splits])
    reference = np.array(scores[REFERENCE])[:, 1] if REFERENCE in scores else None
    probes = []
    for (source, model), pairs in scores.items():
        table = np.array(pairs)
        versus = {}
        if reference is not None and (source, model) != REFERENCE:
            versus = {"kendall_difference": interval(table[:, 1] - reference, float(tested))}
        probes.append(
            Probe(
                source=source,
                model=model,
                features=features[source].shape[1],
                r2=interval(table[:, 0], float(tested)),
                kendall=interval(table[:, 1], float(tested)),
                **versus,
            )
        )
    return probes


def interval(values: np.ndarray, ratio: float) -> Interval:
    """Return the mean of values (J,) over J random splits with its 95 % interval.

    Splits overlap, so the variance of the mean is (1 / J + `ratio`) times that of the values, where `ratio` is the number of
    test over that of other members (Nadeau and Bengio, 2003, Eq. 13). None where a value is not known.
    """
    if not np.isfinite(values).all():
        return Interval(mean=None, low=None, high=None)
    mean, count = float(values.mean()), len(values)
    half = float(stats.t.ppf(0.975, count - 1)) * math.sqrt((1 / count + ratio) * float(values.var(ddof=1)))
    return Interval(mean=mean, low=mean - half, high=mean + half)


def _predicted(
    features: dict[str, np.ndarray], described: dict[str, np.ndarray], values: np.ndarray, runs: np.ndarray, seed: int
) -> dict[tuple[str, str], np.ndarray]:
    """Return what models fitted to all members predict for networks described by (T, F), by source and model."""
    train, val, _ = _split(runs, seed, test=0)
    return {
        (source, model): _fit(model, source, (own[train], own[val], described[source]), values[train], values[val])
        for source, own in features.items()
        for model in MODELS
    }
