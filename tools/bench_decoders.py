"""The contestants of `tools/bench.py decoders`: steps of a space with the paper's decoder, and with a coordinate decoder."""

from __future__ import annotations

from dataclasses import replace

import torch
from bench_cases import OurStep
from bench_multi import MultiCase, multi_cases

from netspace.models.decoders import CoordinateConfig


class ConvStep(OurStep):
    """A step with the case's own decoder, the paper's; `rates` is the number of its parameters."""

    flops = 0  # not counted: both sides are netspace's own

    def __init__(self, case: MultiCase, device: torch.device) -> None:
        super().__init__(case, device)
        self.rates = sum(value.numel() for value in self.model.decoder.parameters())


class CoordinateStep(ConvStep):
    """The same step with a coordinate decoder that has no table of any architecture."""

    def __init__(self, case: MultiCase, device: torch.device) -> None:
        config = CoordinateConfig(kind="coordinate", start="emitted", hidden=256, blocks=1, rank=64, reference_steps=0)
        super().__init__(replace(case, recipe=case.recipe.model_copy(update={"decoder": config})), device)


def decoder_case(quick: bool) -> MultiCase:
    """Return the paper's case of several architectures on CIFAR-10, 88 x 10,000."""
    return multi_cases(quick)[0]
