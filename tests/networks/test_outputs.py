"""What networks give, as tensors, and their relative errors."""

from __future__ import annotations

from collections import namedtuple
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from netspace.errors import NetspaceError, UsageError
from netspace.losses import output_loss
from netspace.networks.outputs import Outputs, output_tensors, squared_errors

Pair = namedtuple("Pair", "boxes scores")


@dataclass
class Found:
    logits: Tensor
    hidden: tuple[Tensor, ...]
    cache: Any = None


def test_nested_outputs_are_named_by_their_paths() -> None:
    one, two, labels = torch.zeros(2, 3), torch.zeros(2), torch.zeros(2, dtype=torch.int64)
    assert list(output_tensors(one)) == [""]
    assert list(output_tensors([one, (labels, two)])) == ["0", "1.1"]
    assert list(output_tensors({"out": one, "labels": labels, "aux": [two, two]})) == ["out", "aux.0", "aux.1"]
    assert list(output_tensors(Pair(one, two))) == ["boxes", "scores"]
    assert list(output_tensors(Found(one, (two, one)))) == ["logits", "hidden.0", "hidden.1"]
    assert output_tensors(None) == output_tensors("text") == {}


def test_an_output_is_picked_by_path_beginning_or_index() -> None:
    given = {"out": torch.full((2, 3), 1.0), "aux": [torch.full((2, 4), 2.0), torch.full((2, 5), 3.0)]}

    def values(name: str | None) -> list[float]:
        return [float(each[0, 0]) for each in Outputs(name).read(given)]

    assert values(None) == [1, 2, 3] and values("out") == [1] and values("aux") == [2, 3]
    assert values("aux.1") == values("2") == [3]
    with pytest.raises(UsageError, match=r"unknown output 'boxes':.* There are: out, aux.0, aux.1"):
        Outputs("boxes").read(given)
    with pytest.raises(UsageError, match=r"unknown output '3'"):
        Outputs("3").read(given)
    with pytest.raises(UsageError, match=r"unknown output 'out': There are: 0. The network gives one tensor"):
        Outputs("out").read(torch.zeros(2, 3))


def test_what_is_taken_for_logits() -> None:
    logits, maps = torch.zeros(2, 3), torch.zeros(2, 3, 4, 4)
    assert Outputs.of(logits, "net") == Outputs(None, True, True)
    assert Outputs.of((logits, maps), "net", "0") == Outputs("0", True, False)
    for given, name, compare in (
        (maps, None, "auto"),
        ((logits, maps), None, "auto"),
        (torch.zeros(2, 1), None, "auto"),
        (logits, None, "outputs"),
    ):
        assert not Outputs.of(given, "net", name, compare).logits  # type: ignore[arg-type]
    with pytest.raises(NetspaceError, match=r"net was expected to answer with logits .* but gave 0 \(2, 3\), 1 \(2, 3"):
        Outputs.of((logits, maps), "net", None, "answers")
    with pytest.raises(NetspaceError, match=r"net was expected to give floating-point tensors, but gave a NoneType"):
        Outputs.of(None, "net")


def test_errors_against_numpy() -> None:
    random = torch.Generator().manual_seed(0)
    target = [torch.randn(4, 3, generator=random), torch.randn(2, 2, 5, generator=random), torch.zeros(3)]
    predicted = [each + 0.1 * torch.randn(each.shape, generator=random) for each in target]
    expected = []
    for mine, theirs in zip(predicted, target, strict=True):
        norm = np.linalg.norm(theirs.double().numpy()) or 1.0
        expected.append((np.linalg.norm((mine - theirs).double().numpy()) / norm) ** 2)
    assert float(output_loss(predicted, target)) == pytest.approx(np.mean(expected), rel=1e-5)
    masked = [target[0].clone()]
    masked[0][0, 0] = -torch.inf
    sums = squared_errors([masked[0] + 1], masked)
    assert sums[0].tolist() == pytest.approx([11, float(target[0].square().sum() - target[0][0, 0] ** 2)])
    with pytest.raises(NetspaceError, match=r"\(3, 3\) differs from \(4, 3\): pick an output whose shape"):
        squared_errors([torch.zeros(3, 3)], [torch.zeros(4, 3)])


def test_outputs_in_units_of_their_norms() -> None:
    given = (torch.tensor([3.0, 4.0]), torch.zeros(2))
    first, second = Outputs(None, logits=False).scaled(given)
    assert first.tolist() == pytest.approx([0.6, 0.8]) and second.tolist() == [0, 0]
    assert Outputs("0").scaled(given)[0].tolist() == [3, 4]
