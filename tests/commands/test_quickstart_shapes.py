"""`netspace quickstart --shapes`, small: chairs are built, embedded, evaluated, interpolated and reported; members have names."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from netspace.errors import UsageError
from netspace.tasks.chairs import chair
from netspace.zoo import Zoo

FEW = (
    "zoo.members={train: 6, val: 2, test: 3}",
    "zoo.archs.siren.width=0.0625",
    "zoo.data.points=256",
    "zoo.epochs={first: 2, last: 2}",
    "space.steps=4",
    "space.validate_every=2",
    "space.networks=2",
    "space.encoder={kind: probe, probes: 16, hidden: 16}",
)


def test_the_quickstart_of_shapes_runs_whole(cli: Callable[..., Any], tmp_path: Path) -> None:
    run = tmp_path / "chairs"
    words = [word for each in FEW for word in ("--set", each)]
    told = cli("quickstart", "--shapes", "--small", "--out", run, *words).out
    assert "score on the test points" in told and "score is the fraction of points whose distance is right" in told
    assert "mean squared difference of distances" in told and "of equal score" in told
    assert "IoU" in told and "after 20 steps on the latents" in told
    assert not any(word in told for word in ("accuracy", "R2 of", "KL", "image", "the same within"))
    figures = json.loads((run / "quickstart.json").read_text())["eval"]
    assert figures["members"] == 3
    assert 0 <= figures["agreement"] <= 1
    assert figures["score"] == {
        "name": "within",
        "higher_is_better": True,
        "noun": "score",
        "meaning": "the fraction of points whose distance is right to 0.01",
        "loss": "mean squared difference of distances",
        "inputs": "points",
        "own_targets": True,
    }
    assert figures["refined"]["steps"] == 20 and 0 <= figures["refined"]["iou"] <= 1
    assert (run / "report.html").stat().st_size > 10_000
    with Zoo(run / "zoo.h5") as zoo:
        group = zoo.only()
        assert group.members["source"].tolist() == [chair(number).name.encode() for number in range(11)]
        assert group.seeds(np.arange(11)).tolist() == list(range(11))
        assert str(zoo.find("chair/0008")) == "siren/0008"
        with pytest.raises(
            UsageError, match=r"no network of 'chair/0099' is in .*: its networks are of chair/0000 to chair/0010"
        ):
            zoo.find("chair/0099")
        assert [*group.members["split"]].count(b"test") == 3
        first, second = group.read([0, 1])
    assert not torch.equal(first, second)
    line = json.loads(
        cli("interpolate", "--run", run, "--from", "chair/0008", "--to", "chair/0010", "--steps", "3", "--json").out
    )
    assert (line["from"], line["to"]) == ("siren/0008", "siren/0010")
    assert line["signals"] == ["chair/0008", "chair/0010"]
    assert json.loads((run / "eval-test.json").read_text())["detail"]["signal"] == [
        f"chair/{8 + row:04d}" for row in range(3)
    ]
    page = Path(json.loads(cli("report", run, "--json").out)["report"]).read_text(encoding="utf-8")
    assert "From chair/0008 to chair/0010" in page and "siren/0" not in page
