"""Where bf16 is slow nothing computes in it, and no step computes in float64: a dispatch mode refuses such tensors."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from fits import MEMBER, settings
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from netspace import precision
from netspace.commands.evaluate import evaluate
from netspace.commands.optimize import OptimizeConfig, optimize
from netspace.compression.fit import fit
from netspace.training.latent_space import train
from netspace.training.loop import Loop
from netspace.training.recipe import SpaceRecipe

SLOW = (torch.bfloat16, torch.float16)


class Refuse(TorchDispatchMode):
    """Fails at the first operation on, or into, a floating-point tensor of some dtypes."""

    def __init__(self, *dtypes: torch.dtype) -> None:
        super().__init__()
        self.dtypes, self.operations = dtypes, 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        self.operations += 1
        for each in tree_leaves((args, kwargs, result)):
            if isinstance(each, torch.Tensor) and each.dtype in self.dtypes:
                raise AssertionError(f"{func} computes in {each.dtype} on {tuple(each.shape)}")
        return result


@contextmanager
def refused(*dtypes: torch.dtype) -> Iterator[None]:
    with Refuse(*dtypes) as mode:
        yield
    assert mode.operations > 1000  # it was asked


@pytest.fixture(autouse=True)
def _bf16_is_slow(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(precision, "bf16_is_fast", lambda _device: False)


@pytest.fixture(autouse=True)
def _steps_refuse_float64(monkeypatch: pytest.MonkeyPatch) -> None:
    gradients: Callable[[Loop, int], Any] = Loop._gradients

    def strict(self: Loop, number: int) -> Any:
        with Refuse(torch.float64):
            return gradients(self, number)

    monkeypatch.setattr(Loop, "_gradients", strict)


def auto(settings: dict[str, Any], **changes: Any) -> SpaceRecipe:
    return SpaceRecipe.model_validate(
        {**settings, "steps": 2, "precision": "auto", "networks_precision": "auto", **changes}
    )


@pytest.mark.parametrize("decoder", ["conv", "linear"])
@pytest.mark.parametrize("encoder", ["conv", "probe"])
def test_a_training_and_an_evaluation(
    decoder: str, encoder: str, tiny_zoo: Path, space_settings: dict[str, Any], tmp_path: Path
) -> None:
    space_settings["loss"] |= {"lines": 0.5, "weights": 0.1}
    space_settings["decoder"]["kind"], space_settings["encoder"]["kind"] = decoder, encoder
    with refused(*SLOW):
        train(auto(space_settings), tiny_zoo, tmp_path / "run")
        evaluate(tmp_path / "run")


def test_a_training_of_several_architectures(multi_zoo: Path, multi_settings: dict[str, Any], tmp_path: Path) -> None:
    with refused(*SLOW):
        train(auto(multi_settings), multi_zoo, tmp_path / "run")


def test_an_optimisation(tiny_run: Path, tmp_path: Path) -> None:
    with refused(*SLOW):
        optimize(tiny_run, OptimizeConfig(starts=("worst",), steps=2, validate_every=1), tmp_path / "out")


@pytest.mark.parametrize("name", ["muon", "ranger", "adam"])
def test_a_fit(name: str, multi_zoo: Path, tmp_path: Path) -> None:
    terms = {"reconstruction": 1.0, "distillation": 1e-4, "features": 1e-4, "images": 8, "kernels": 64}
    stage = {"steps": 2, **terms, "optimizer": {"name": name}}
    config = settings(stages=[stage], precision="auto", predictor_precision="auto")
    with refused(*SLOW):
        fit(MEMBER, tmp_path / "fit", config, multi_zoo)


def test_such_an_operation_is_noticed() -> None:
    with pytest.raises(AssertionError, match=r"bfloat16 on \(3,\)"), Refuse(*SLOW):
        torch.ones(3).bfloat16() * 2
