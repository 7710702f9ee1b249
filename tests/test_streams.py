"""Random streams: independent, the same for ever, and named."""

from __future__ import annotations

import ast
from pathlib import Path

import torch
from hypothesis import given
from hypothesis import strategies as st

import model_zoo
import netspace
from netspace.streams import Stream, generator

seeds = st.integers(-(2**63), 2**64)


@given(seeds, st.lists(seeds, max_size=3))
def test_a_stream_is_its_seed_and_place_alone(seed: int, stream: list[int]) -> None:
    torch.rand(3)  # the global state does not matter
    assert torch.equal(
        torch.rand(4, generator=generator(seed, *stream)), torch.rand(4, generator=generator(seed, *stream))
    )


def test_streams_of_neighbouring_seeds_are_unrelated() -> None:
    places = [(a,) for a in range(8)] + [(a, b) for a in range(8) for b in range(8)] + [(0, 0, c) for c in range(8)]
    drawn = torch.stack([torch.randn(2000, generator=generator(*index), dtype=torch.float64) for index in places])
    correlation = torch.corrcoef(drawn) - torch.eye(len(places), dtype=torch.float64)
    assert correlation.abs().max() < 6 / 2000**0.5
    assert len({generator(*index).initial_seed() for index in places}) == len(places)


def test_streams_stay_the_same_from_version_to_version() -> None:
    """A zoo built again must be the same zoo."""
    assert [generator(*index).initial_seed() for index in [(0,), (1,), (1, 2)]] == [
        8147104208329303767,
        5225608189600411232,
        6804074658870690613,
    ]


def test_the_integers_of_streams_stay_the_same() -> None:
    assert {name: int(stream) for name, stream in Stream.__members__.items()} == {
        "MEMBERS": 1, "INPUTS": 2, "AUGMENTATION": 3, "LINES": 5, "SETUP": 7, "BASELINE_NOISE": 11,
        "IMPORTED_SPLITS": 13, "START_NOISE": 13, "SAMPLES": 17, "SAMPLE_NOISE": 19, "FRESH_NETWORKS": 23,
        "SAMPLE_ENDS": 29, "FIT_KERNELS": 31, "FIT_NOISE": 37, "FIT_PREDICTOR": 41, "POOL": 43, "DISTURBANCE": 47,
        "ANALYSED_IMAGES": 53, "ANALYSED_NETWORK": 59, "CORRECTION_IMAGES": 71, "CORRECTION_NOISE": 73,
        "SIZES": 79, "SAME_ACCURACY": 83, "DISTILLED_NETWORK": 89, "VARIETY": 97, "CLASS_MEMBERS": 100,
        "SURFACE_POINTS": 61, "SHAPE_LINES": 67, "AUTO_DECODER": 1009, "AUTO_DECODED_SHAPES": 1013,
        "AUTO_DECODED_POINTS": 1019, "AUTO_DECODED_FIT": 1021, "COMPLETION_POINTS": 1031, "COMPLETION_STARTS": 1033,
        "SCRATCH_NETWORKS": 1039, "SCRATCH_POINTS": 1049, "DRAWN_WIDTHS": 1063, "RANDOM_CHANNELS": 1069,
        "MORPH_TENSORS": 1087, "MORPH_DRAWS": 1091, "MORPH_FUNCTION": 1093, "LATENT_NOISE": 1051,
        "IMPORTANCE_NOISE": 1061, "LATENT_SAMPLES": 1097, "CHANNEL_ORDERS": 1103,
        "SENSITIVITY": 1109,
        "PROBE_MEMBERS": 1213, "SKETCHES": 1217, "BUDGET_INPUTS": 1301, "STUDENT": 1303,
        "MEASURED_INPUTS": 1307, "TRANSFER": 1319, "PROBE_BOOTSTRAP": 1321,
    }  # fmt: skip


def test_streams_are_named_where_they_are_drawn_from() -> None:
    """No call of `generator` or `Shuffle` gives a stream as a bare number."""
    calls = 0
    for package in (netspace, model_zoo):
        for file in Path(str(package.__file__)).parent.rglob("*.py"):
            for node in ast.walk(ast.parse(file.read_text())):
                if not isinstance(node, ast.Call) or getattr(node.func, "id", "") not in ("generator", "Shuffle"):
                    continue
                calls += 1
                streams = node.args[1 if node.func.id == "generator" else 2 :] + [k.value for k in node.keywords]
                numbers = [each for part in streams for each in ast.walk(part) if isinstance(each, ast.Constant)]
                assert not any(type(each.value) is int for each in numbers), f"{file}:{node.lineno}"
    assert calls > 20
