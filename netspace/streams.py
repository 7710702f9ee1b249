"""Random streams: one generator for each (seed, stream...), independent and the same on every machine."""

from __future__ import annotations

import torch


def generator(seed: int, *stream: int, device: str | torch.device = "cpu") -> torch.Generator:
    """A random generator of its own for each (seed, stream...): independent, the same on every machine.

    The numbers are mixed by SplitMix64, so neighbouring seeds give unrelated streams.
    """
    state = 0
    for number in (seed, *stream):
        state = _splitmix(state ^ (number & _MASK))
    return torch.Generator(device=device).manual_seed(state >> 1)


_MASK = (1 << 64) - 1


def _splitmix(state: int) -> int:
    state = (state + 0x9E3779B97F4A7C15) & _MASK
    state = ((state ^ (state >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
    state = ((state ^ (state >> 27)) * 0x94D049BB133111EB) & _MASK
    return state ^ (state >> 31)
