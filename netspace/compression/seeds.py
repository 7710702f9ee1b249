"""`netspace compress fit --seeds N`: the same fit from several seeds, with the mean and spread of what it reaches, by round."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from pathlib import Path

from netspace.archs import ArchConfig
from netspace.compression.fit import fit
from netspace.results.compressed import FitRecord, FitResult
from netspace.results.seeds import RoundFigures, SeededFits, Spread
from netspace.training.recipe import FitConfig


def fit_seeds(
    model: str,
    out: Path,
    config: FitConfig,
    count: int,
    zoo_path: Path | None = None,
    resume: bool = False,
    device: str = "cpu",
    arch: ArchConfig | None = None,
    input_shape: tuple[int, ...] | None = None,
    key: str | None = None,
) -> SeededFits:
    """Fit a network from `count` seeds, the recipe's and those that follow it; write the fits and seeds.json to the folder `out`.

    The fit of seed S is in the folder seed-S, a run folder like any other. Raises as `netspace.compression.fit.fit`.

    >>> config = FitConfig.model_validate({"predictor": {"hidden": 8}, "stages": [{"steps": 2, "rounds": 2}]})
    >>> result = fit_seeds("best", folder, config, 2, zoo)
    >>> result.seeds, len(result.rounds)
    ([0, 1], 2)
    """
    seeds = [config.seed + number for number in range(count)]
    fits = []
    for seed in seeds:
        folder, own = out / f"seed-{seed}", config.model_copy(update={"seed": seed})
        begun = resume and (folder / "config.yaml").is_file()
        fits.append(fit(model, folder, own, zoo_path, begun, device, arch, input_shape, key))
    result = summary(config, seeds, fits)
    result.write(out / "seeds.json")
    return result


def summary(config: FitConfig, seeds: Sequence[int], fits: Sequence[FitResult]) -> SeededFits:
    """Return the means and spreads of fits by the same recipe from several seeds."""
    reached = [each.accuracy_reconstructed for each in fits]
    differences = [
        None if after is None or each.accuracy_original is None else after - each.accuracy_original
        for each, after in zip(fits, reached, strict=True)
    ]
    first = fits[0]
    return SeededFits(
        seeds=list(seeds),
        parameters_represented=first.parameters_represented,
        parameters_predictor=first.parameters_predictor,
        accuracy_original=first.accuracy_original,
        accuracy_reconstructed=spread(reached),
        difference=spread(differences),
        agreement=spread([each.agreement for each in fits]),
        relative_error=spread([each.relative_error for each in fits]),
        rounds=_rounds(config, fits),
    )


def _rounds(config: FitConfig, fits: Sequence[FitResult]) -> list[RoundFigures]:
    """Return the figures of the weights that each round of each stage kept, by validation."""
    numbered = [(stage, number) for stage, each in enumerate(config.stages) for number in range(each.rounds)]
    rounds = []
    for index, (stage, number) in enumerate(numbered):
        kept = [_kept([record for record in each.curve if record.stage == index]) for each in fits]
        rounds.append(
            RoundFigures(
                stage=stage,
                round=number,
                accuracy_val=spread([each.accuracy_val for each in kept]),
                relative_error=spread([each.relative_error for each in kept]),
            )
        )
    return rounds


def _kept(records: Sequence[FitRecord]) -> FitRecord:
    """Return the validation whose weights are kept: the first of the highest accuracy, and of these of the least error."""
    return max(records, key=lambda record: (record.accuracy_val or 0.0, -(record.relative_error or 0.0)))


def spread(values: Sequence[float | None]) -> Spread | None:
    """Return values with their mean and the standard deviation of a sample (None for one value); None if one is not known."""
    known = [value for value in values if value is not None]
    if len(known) < len(values):
        return None
    return Spread(values=known, mean=statistics.fmean(known), std=deviation(known))


def deviation(values: Sequence[float]) -> float | None:
    """Return the standard deviation of a sample; None for a single value."""
    return statistics.stdev(values) if len(values) > 1 else None
