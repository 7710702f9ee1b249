"""The steps at which a network's rounded and entropy-coded weights take a given number of bytes.

Each layer's step is chosen by its sensitivity and its weights, up to a common factor, which is found on the true size of the file. Weights
may be rounded to what costs least in error and bits together, or pruned first; neither is the default, since networks answered less
alike at equal bytes (docs/log.md)."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from netspace.errors import UsageError
from netspace.models.coded import Coded
from netspace.networks.rounding import Codes, round_cheaply, round_step
from netspace.networks.spec import NetSpec

RATE_WEIGHT = 0.0  # of a bit, in units of the layer's mean sensitivity * step ** 2
POWER = 0.5  # of sensitivities; by measurement, of 0 (relative errors) to 1
MAX_CORRECTIONS = 4  # until a corrected file is within the budget
MAX_GAIN = 2.0  # of a step after rounding
LEVELS = 255  # of a vector's range, at least
CLOSE = 0.004  # of the budget, that may be left unused
MAX_TRIALS = 16  # of the common factor
SMALLEST = 1e-9  # sensitivity of a layer, in units of the largest
RANGE = 40.0  # natural logarithms between the smallest and the largest factor that is tried


@dataclass(frozen=True)
class Trial:
    """A file with steps of one factor, its bytes, and the logarithm of the factor."""

    coded: Coded
    size: int
    logarithm: float


def relative_steps(
    state: Mapping[str, Tensor], sensitivities: Mapping[str, Tensor], power: float = POWER
) -> dict[str, float]:
    """Return the step of each floating-point tensor up to a common factor: (S ** power / V ** (1 - power)) ** -0.5.

    S is the tensor's mean sensitivity and V the mean square of its weights. With `power` 1 small errors of all weights move
    the outputs alike (reverse water-filling); with 0 all tensors have the same relative error.

    Raises `UsageError` if no tensor has a positive, finite sensitivity.
    """
    named = {
        name: value.detach().double()
        for name, value in state.items()
        if value.is_floating_point() and value.numel() and name in sensitivities
    }
    means = {name: float(sensitivities[name].double().mean()) for name in named}
    largest = max(means.values(), default=0.0)
    if not (largest > 0 and math.isfinite(largest)):
        raise UsageError("steps were asked for, but no tensor has a positive, finite sensitivity: give other inputs")
    steps = {}
    for name, value in named.items():
        square = float(value.square().mean()) or 1.0
        steps[name] = (max(means[name], SMALLEST * largest) ** power / square ** (1 - power)) ** -0.5
    return steps


def round_state(
    state: Mapping[str, Tensor],
    sensitivities: Mapping[str, Tensor],
    steps: Mapping[str, float],
    rate_weight: float = RATE_WEIGHT,
    pruned: float = 0.0,
    unbiased: bool = True,
) -> dict[str, Codes]:
    """Return the codes of the tensors of `steps`; a vector's step is at most its range over 255.

    Args:
        rate_weight: what a bit may cost, in units of mean sensitivity * step ** 2; 0 rounds to the nearest.
        pruned: the fraction of the weights of all tensors that are no vectors which are set to zero first, by the
            smallest weight ** 2 * sensitivity.
        unbiased: whether the step of a matrix or kernel is multiplied, after rounding, by (w, w) / (w, q) of the weights w
            and the rounded ones q. Coarse rounding shrinks a layer, all errors in one direction, which outputs notice
            more than the independent errors that sensitivities count.
    """
    threshold = _threshold(state, sensitivities, steps, pruned)
    codes = {}
    for name, step in steps.items():
        value = state[name].detach()
        if value.dim() < 2:
            spread = float(value.max() - value.min()) if value.numel() else 0.0
            codes[name] = round_step(value, min(step, spread / LEVELS) if spread > 0 else max(step, 1e-12))
            continue
        if pruned > 0:
            value = torch.where(_importance(value, sensitivities[name]) < threshold, torch.zeros_like(value), value)
        found = (
            round_cheaply(value, step, sensitivities[name], rate_weight) if rate_weight > 0 else round_step(value, step)
        )
        codes[name] = _without_shrinking(found, state[name]) if unbiased else found
    return codes


def _without_shrinking(codes: Codes, weight: Tensor) -> Codes:
    """Return codes with steps for which the tensor's projection on the weights is the weights themselves."""
    exact, rounded = weight.detach().double().flatten(), codes.restore(weight.shape).double().flatten()
    power, common = float(exact @ exact), float(exact @ rounded)
    return Codes(codes.values, codes.steps * min(MAX_GAIN, power / common)) if common > 0 else codes


def distortion(state: Mapping[str, Tensor], codes: Mapping[str, Codes], sensitivities: Mapping[str, Tensor]) -> float:
    """Return the sum of sensitivity * error ** 2: about the mean squared change of the outputs, summed over outputs."""
    total = 0.0
    for name, each in codes.items():
        error = each.restore(state[name].shape).double() - state[name].double()
        total += float((sensitivities[name].double() * error.square()).sum())
    return total


def code_in(
    budget: int,
    state: Mapping[str, Tensor],
    sensitivities: Mapping[str, Tensor],
    rate_weight: float = RATE_WEIGHT,
    pruned: float = 0.0,
    unbiased: bool = True,
    power: float = POWER,
    correct: Callable[[dict[str, Tensor]], Mapping[str, Tensor]] | None = None,
    spec: NetSpec | None = None,
    notes: Mapping[str, Any] | None = None,
) -> Coded:
    """Return the network in a file of at most `budget` bytes, which it uses but for 0.4 %, if smaller steps can use them.

    Tensors without sensitivities, and those that are no floating-point numbers, are stored as they are.

    Args:
        correct: returns a better state dict for one that is rounded; its vectors (biases, batch norm) are stored in place of
            the network's own, as `netspace.compression.correct.corrected` makes them.
        rate_weight, pruned, unbiased: as `round_state`.
        power: as `relative_steps`.

    Raises `UsageError` if the smallest file is larger than the budget.
    """
    relative = relative_steps(state, sensitivities, power)

    def trial(logarithm: float) -> Trial:
        steps = {name: step * math.exp(logarithm) for name, step in relative.items()}
        codes = round_state(state, sensitivities, steps, rate_weight, pruned, unbiased)
        coded = Coded.of(state, codes, spec=spec, notes=notes)
        return Trial(coded, coded.file_bytes(), logarithm)

    best = _largest_within(trial, budget, _start(state, relative))
    if correct is None:
        return best.coded
    allowed, found = budget, best
    for _ in range(MAX_CORRECTIONS):
        rounded = found.coded.reconstruct()
        vectors = {name: value for name, value in correct(rounded).items() if value.dim() < 2 and name in state}
        codes = {name: entry.value for name, entry in found.coded.entries.items() if isinstance(entry.value, Codes)}
        for name in vectors.keys() & codes.keys():
            codes[name] = round_step(vectors[name], float(codes[name].steps))
        better = Coded.of(_with_vectors(state, vectors), codes, spec=spec, notes=notes)
        excess = better.file_bytes() - budget
        if excess <= 0:
            return better
        allowed -= excess + 8
        found = _largest_within(trial, allowed, found.logarithm)
    return best.coded


def steps_for_budget(
    state: Mapping[str, Tensor], sensitivities: Mapping[str, Tensor], budget: int, **settings: Any
) -> dict[str, float]:
    """Return the step of each tensor in the file that `code_in` makes, whose `settings` they are."""
    coded = code_in(budget, state, sensitivities, **settings)
    return {name: float(each.value.steps[0]) for name, each in coded.entries.items() if isinstance(each.value, Codes)}


def _with_vectors(state: Mapping[str, Tensor], vectors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return a state dict with other vectors in its types, those of several names still being one tensor."""
    other = {id(state[name]): value.to(state[name].dtype) for name, value in vectors.items()}
    return {name: other.get(id(value), value) for name, value in state.items()}


def _importance(value: Tensor, sensitivity: Tensor) -> Tensor:
    return value.double().square() * sensitivity.double()


def _threshold(
    state: Mapping[str, Tensor], sensitivities: Mapping[str, Tensor], steps: Mapping[str, float], pruned: float
) -> float:
    """Return the importance below which the fraction `pruned` of the weights of matrices and kernels is."""
    if not 0 <= pruned < 1:
        raise UsageError(f"a fraction of {pruned} of the weights was to be pruned, but it is at least 0 and below 1")
    matrices = [name for name in steps if state[name].dim() > 1]
    if pruned == 0 or not matrices:
        return 0.0
    every = torch.cat([_importance(state[name].detach(), sensitivities[name]).flatten() for name in matrices])
    return float(every.kthvalue(max(1, math.ceil(pruned * len(every)))).values)


def _start(state: Mapping[str, Tensor], relative: Mapping[str, float]) -> float:
    """Return the logarithm of the factor at which the typical step is the typical weight."""
    logarithms, counts = 0.0, 0
    for name, step in relative.items():
        power = float(state[name].detach().double().square().mean())
        if state[name].dim() > 1 and power > 0:
            logarithms += state[name].numel() * (math.log(power) / 2 - math.log(step))
            counts += state[name].numel()
    return logarithms / max(1, counts)


def _largest_within(trial: Callable[[float], Trial], budget: int, start: float) -> Trial:
    """Return the largest file within a budget; `trial` makes one for a logarithm, smaller files for larger ones."""
    best, tried = None, trial(start)
    low, high = (start, None) if tried.size > budget else (None, start)  # too large a file, and one that fits
    over, under, width = tried.size, tried.size, 0.7
    for _ in range(MAX_TRIALS):
        if tried.size <= budget and (best is None or tried.size > best.size):
            best = tried
        if best is not None and best.size >= (1 - CLOSE) * budget:
            break
        if low is None or high is None:  # no bracket yet: the sizes of small files hardly change
            logarithm = start - width if low is None else start + width
            width *= 2
            if width > RANGE:
                break
        else:  # a file's size falls about linearly with the logarithm; a part of the middle keeps both ends moving
            slope = (over - budget + CLOSE / 2 * budget) / max(1, over - under)
            logarithm = low + (high - low) * min(0.9, max(0.1, slope))
        tried = trial(logarithm)
        if tried.size > budget:
            low, over = logarithm, tried.size
        else:
            high, under = logarithm, tried.size
    if best is None:
        raise UsageError(
            f"a file of at most {budget:,} bytes was asked for, but the smallest of this network takes {tried.size:,}: give more"
        )
    return best
