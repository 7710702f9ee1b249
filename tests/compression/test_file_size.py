"""A compressed file that is larger than its network is never written without a word."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from fits import settings, state_of
from safetensors.torch import save_file

from netspace.compression import fit
from netspace.compression.fit import begin, larger
from netspace.models.coordinate_network import Predictor, PredictorConfig, parameter_count

SHORT = ("--set", "stages.0.steps=2", "--set", "stages.0.kernels=64", "--json")


@pytest.mark.parametrize("kind", ["plain", "skip", "residual", "nerf"])
def test_parameters_are_counted_without_a_predictor(kind: str) -> None:
    for hidden, layers in ((7, 2), (16, 5)):
        config = PredictorConfig.model_validate({"kind": kind, "hidden": hidden, "layers": layers})
        assert parameter_count(config, 9) == sum(value.numel() for value in Predictor(config, 9).parameters())


def test_a_larger_file_is_told_before_and_after_the_fit(cli: Callable[..., Any]) -> None:
    save_file(state_of(), "small.safetensors")  # 108 + 216 kernels' values
    done = cli("compress", "fit", "small.safetensors", *SHORT, "-o", "c")
    assert done.code == 0 and done.json["larger"] and done.json["bytes_file"] > 100 * done.json["bytes_original"]
    (line,) = (line for line in done.err.splitlines() if line.startswith("warning: "))
    assert (
        f"the network's weights take {done.json['bytes_original']:,} (" in line and "keep this network as it is" in line
    )
    assert "the file is LARGER than the network's weights" in cli("compress", "eval", "c/compressed.safetensors").out


def test_the_width_that_is_advised_makes_the_file_smaller(cli: Callable[..., Any]) -> None:
    torch.manual_seed(0)
    state = {f"{name}.weight": torch.randn(64, 32, 3, 3) for name in "ab"}
    save_file(state, "net.safetensors")
    result = larger(begin(state, settings(predictor={"hidden": 200}), None), state)
    assert result is not None
    hidden = int(result.partition("predictor.hidden=")[2].split()[0])
    one, more = (parameter_count(PredictorConfig(hidden=width), 9) for width in (hidden, hidden + 1))
    assert one <= 64 * 32 * 9 < more
    done = cli("compress", "fit", "net.safetensors", *SHORT, "--set", f"predictor.hidden={hidden}", "-o", "c")
    assert "warning" not in done.err and not done.json["larger"]
    assert 0.5 < done.json["bytes_file"] / done.json["bytes_original"] < 0.6
    assert "LARGER" not in cli("compress", "eval", "c/compressed.safetensors").out
    state16 = {name: value.half() for name, value in state.items()}
    assert larger(begin(state, settings(predictor={"hidden": hidden + 25}), None), state) is None
    assert larger(begin(state16, settings(predictor={"hidden": hidden + 25}), None), state16) is not None
    assert Path("c/config.yaml").read_text().count("steps: 2\n") == 1


def test_pointwise_convolutions_among_large_kernels_are_warned_of_or_refused(
    cli: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    save_file({"a.weight": torch.randn(8, 1, 7, 7), "b.weight": torch.randn(64, 64, 1, 1)}, "net.safetensors")
    done = cli("compress", "fit", "net.safetensors", *SHORT, "-o", "c")
    (line,) = (line for line in done.err.splitlines() if "pointwise" in line)
    assert "warning: 1x1 convolutions are taken as centres of 7 x 7 kernels, so that 201,096 values" in line
    assert line.endswith("for 4,488: --set pointwise=tiles takes 5,292")
    done = cli("compress", "fit", "net.safetensors", *SHORT, "--set", "pointwise=tiles", "-o", "tiles")
    assert done.code == 0 and "pointwise" not in done.err
    monkeypatch.setattr(fit, "free_memory", lambda device: 1 << 20)
    done = cli("compress", "fit", "net.safetensors", *SHORT, "-o", "refused")
    assert done.code == 2 and done.sentence.startswith("a step takes about 0.0 GiB, and 0.0 are free: 1x1")
    assert not Path("refused").exists()
