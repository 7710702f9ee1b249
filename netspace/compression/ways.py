"""The ways of `compress fit` to hold a network's own weights in a number of bytes, without training: rounded, coded, pruned, mixed.

Each finds what just fits and writes the file. Axes: R rows (filters), C columns of a weight as a matrix.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from netspace.compression.correct import corrected
from netspace.compression.shrink import pruned as without_smallest
from netspace.compression.work import CannotFit, Work, short_types
from netspace.models.coded import Coded, Way
from netspace.networks.rounding import BITS, Codes, round_rows, round_step, unbiased
from netspace.networks.sensitivity import Of, relative_steps, sensitivities
from netspace.networks.state_dict import map_tensors

SEARCH = 16  # files that are made at most to find the steps that fit
NEAR, FINE = 0.995, 1e-3  # of the budget, and of the logarithm of steps, at which the search ends
GUESS = -1.0  # the first logarithm
SLACK = 64  # bytes that are left for corrected batch norms and biases, which code less well
RANGE = (-12.0, 4.0)  # of the logarithm to base 2 of steps, in units of the weights' root mean square
LARGER = 0.2  # logarithm of steps at which compensated integers fit, over that of the nearest ones
AROUND = 1.0  # of a logarithm that is known to be near
COMPENSATED = "errors compensated"  # how it is told that layers make up for errors of rounding
PRUNED = (0.3, 0.5, 0.7)  # of the weights, the smallest first, that are set to zero


def rounded(work: Work, limit: int, path: Path) -> str:
    """Round each row to as many bits, 2 to 8, as fit, with a step of its own; values are packed."""
    made, bits = rounded_file(work, limit)
    return saved(_corrected(work, made, limit), f"{bits} bits", path)


def coded(work: Work, limit: int, path: Path) -> str:
    """Round all weights to one step, in units of each layer's root mean square, and code them by their entropy."""
    return saved(*fitting(work, *plan(work, "coded"), limit), path)


def mixed(work: Work, limit: int, path: Path) -> str:
    """As `coded`, with steps by how much the network's answers change with each layer: small ones where they do most.

    Where networks are run, layers make up for errors of rounding (`Compensation`), if answers are more like the original's then.
    """
    weights, units = plan(work, "mixed")
    plain, setting, log_step = _fitting(work, weights, units, limit)
    made = compensated(work, limit, log_step)
    if made is not None and work.likeness(made[0].reconstruct()) > work.likeness(plain.reconstruct()):
        return saved(*made, path)
    return saved(plain, setting, path)


def pruned(work: Work, limit: int, path: Path) -> str:
    """As `coded`, with the smallest weights set to zero first, in units of each layer's root mean square."""
    container, setting, fraction = best_pruned(work, limit)
    return saved(container, f"{100 * fraction:.0f} % zero, {setting}", path)


Make = Callable[[Work, int, Path], str]


@dataclass(frozen=True)
class Candidate:
    """One thing to try: a way, what makes its file, and the steps that it is trained for."""

    way: str
    make: Make
    steps: int = 0


UNTRAINED: Mapping[str, Make] = {"rounded": rounded, "coded": coded, "pruned": pruned, "mixed": mixed}


def saved(container: Coded, setting: str, path: Path) -> str:
    """Write a file, and return how it was made, in words."""
    container.save(path)
    return setting


def plan(work: Work, way: str, fraction: float = 0.0) -> tuple[dict[str, Tensor], dict[str, float]]:
    """Return the weights that a way codes, and their steps up to one factor; `fraction` of the weights are zero."""
    weights = dict(work.matrices())
    units = {name: _root_mean_square(value) for name, value in weights.items()}
    if fraction:
        scaled = {name: value.float() / units[name] for name, value in weights.items()}
        weights = {name: value * units[name] for name, value in without_smallest(scaled, fraction).items()}
    return weights, sensitive_steps(work, units) if way == "mixed" else units


def sensitive_steps(work: Work, units: Mapping[str, float]) -> dict[str, float]:
    """Return the steps of `mixed`, up to one factor: by how much answers move with each weight of a layer.

    Where no network is run, or no gradients pass through it, errors count relative to their layer, as in `coded`.
    """
    judge, inputs = work.judge, work.correction_inputs()
    if judge.module is None or inputs is None or not judge.trainable:
        return dict(units)
    if (known := work.cache.get("steps")) is None:
        state = map_tensors(work.original.state, lambda value: value.to(judge.device))
        of: Of = "probabilities" if judge.outputs.logits else "outputs"
        found = sensitivities(judge.module, state, inputs, of, seed=work.config.seed, read=judge.outputs.scaled)
        steps = relative_steps(work.original.state, found)
        typical = math.exp(sum(math.log(units[name] / steps[name]) for name in units) / len(units))
        known = work.cache["steps"] = {name: typical * steps[name] for name in units}
    return {name: known[name] for name in units}


def rounded_file(work: Work, limit: int) -> tuple[Coded, int]:
    """Return the file of rows rounded to the most bits that fit, and these bits. Raises `CannotFit`.

    Weights are rounded to a number of bits that is known to be too large for the limit no second time.
    """
    size = 0
    for bits in reversed(BITS):
        if (size := work.rounded_bytes.get(bits, 0)) > limit:
            continue
        made = container_of(work, {name: round_rows(value, bits) for name, value in work.matrices().items()}, "rounded")
        size = work.rounded_bytes[bits] = made.file_bytes()
        if size <= limit:
            return made, bits
    raise CannotFit(f"rounding to {BITS[0]} bits takes {size:,} bytes", size)


def best_pruned(work: Work, limit: int) -> tuple[Coded, str, float]:
    """Return the best file of pruned and coded weights, how it was made, and which fraction of the weights is zero."""
    best: tuple[float, Coded, str, float] | None = None
    for fraction in PRUNED:
        container, setting = fitting(work, *plan(work, "pruned", fraction), limit)
        likeness = work.likeness(container.reconstruct())
        if best is None or likeness > best[0]:
            best = likeness, container, setting, fraction
    assert best is not None
    return best[1:]


def container_of(work: Work, codes: Mapping[str, Codes], way: Way, state: Mapping[str, Tensor] | None = None) -> Coded:
    """Return a file of codes, with all other tensors of a state, by default the original's, in 16 bits where these do."""
    state = work.original.state if state is None else state
    ways: dict[str, Way] = {**short_types(state), **dict.fromkeys(codes, way)}
    return Coded.of(state, codes, ways, work.spec)


def fitting(work: Work, weights: Mapping[str, Tensor], units: Mapping[str, float], limit: int) -> tuple[Coded, str]:
    """Return weights rounded to the smallest steps that fit, and how in words. Raises `CannotFit`."""
    return _fitting(work, weights, units, limit)[:2]


def _fitting(
    work: Work, weights: Mapping[str, Tensor], units: Mapping[str, float], limit: int
) -> tuple[Coded, str, float]:
    """Return what `fitting` does, and the logarithm to base 2 of the steps."""

    def made(log_step: float) -> Coded:
        codes = {name: unbiased(round_step(value, 2**log_step * units[name]), value) for name, value in weights.items()}
        return container_of(work, codes, "coded")

    best, log_step = finest(made, _room(work, limit))
    return _corrected(work, best, limit), f"step {2**log_step:.3g}", log_step


def _room(work: Work, limit: int) -> int:
    return limit - SLACK if work.judge.runs and limit > SLACK else limit


def compensated(work: Work, limit: int, near: float | None = None) -> tuple[Coded, str] | None:
    """Return weights rounded so that layers make up for errors, and how in words; None if that cannot be done or does not fit.

    `near` is the logarithm to base 2 of the steps with which the nearest integers of `mixed` fit: these take a little less.
    What was made for a limit is kept.
    """
    if limit in work.compensated:
        return work.compensated[limit]
    if (compensation := work.compensation()) is None:
        return None
    weights, units = plan(work, "mixed")

    def made(log_step: float) -> Coded:
        codes, biases = compensation.rounded(weights, {name: 2**log_step * units[name] for name in weights})
        return container_of(work, codes, "coded", compensation.with_biases(biases))

    try:
        near = _fitting(work, weights, units, limit)[2] if near is None else near
        best, log_step = finest(made, _room(work, limit), near + LARGER)
    except CannotFit:
        return None
    result = _corrected(work, best, limit), f"step {2**log_step:.3g}, {COMPENSATED}"
    work.compensated[limit] = result
    return result


def _corrected(work: Work, container: Coded, limit: int) -> Coded:
    """Return a file whose batch norms and biases make up for the errors of the weights, if it fits and is better."""
    original, state = work.original, container.reconstruct()
    inputs = work.correction_inputs()
    if inputs is None or original.module is None:
        return container
    codes = {name: each.value for name, each in container.entries.items() if isinstance(each.value, Codes)}
    way: Way = next((each.way for each in container.entries.values() if isinstance(each.value, Codes)), "coded")
    better = corrected(original.module, original.state, state, list(codes), inputs)
    changed = {name: better[name].to(value.dtype) if name not in codes else value for name, value in state.items()}
    tried = container_of(work, codes, way, {name: changed[container.tied.get(name, name)] for name in state})
    if tried.file_bytes() > limit or work.likeness(tried.reconstruct()) <= work.likeness(state):
        return container
    return tried


def finest(make: Callable[[float], Coded], limit: int, near: float | None = None) -> tuple[Coded, float]:
    """Return the largest file of at most `limit` bytes, and the logarithm to base 2 of its steps.

    `make` returns the file at a logarithm in `RANGE`; a bit less of each value is about as many bytes less everywhere, so that
    few files are made. `near` is a logarithm not far from the one that is looked for. Raises `CannotFit` if none is small enough.
    """
    low, high = RANGE if near is None else (near - AROUND, near + AROUND)
    best = make(high)
    above, below = None, best.file_bytes()  # bytes at the steps `low`, which are not known yet, and `high`
    if below > limit:
        raise CannotFit(f"even without any weight left the file takes {below:,} bytes", below)
    middle = GUESS if near is None else near
    for _ in range(SEARCH):
        tried = make(middle)
        size = tried.file_bytes()
        if size <= limit:
            high, below, best = middle, size, tried
        else:
            low, above = middle, size
        if below >= NEAR * limit or high - low < FINE:
            break
        slope = 0.5 if above is None else (limit * (1 + NEAR) / 2 - below) / (above - below)
        middle = high - (high - low) * min(max(slope, 0.05), 0.95)
    return best, high


def _root_mean_square(weight: Tensor) -> float:
    value = float(weight.detach().float().square().mean().sqrt())
    return value if value > 0 and math.isfinite(value) else 1.0
