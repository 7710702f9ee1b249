"""`tools/widths_table.py`: validation latents decoded at other widths, against networks that are decoded one by one."""

from __future__ import annotations

import importlib
import sys
import warnings
from pathlib import Path
from types import ModuleType

import pytest
import torch

from netspace.space import Space
from netspace.training.setup import task_of
from netspace.zoo import Zoo

TRAINED, OTHER = 0.15, 0.3


@pytest.fixture
def widths_table(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(Path(__file__).parent.parent / "tools"))
    return importlib.import_module("widths_table")


@torch.no_grad()
def expected_rows(run: Path, zoo: Path) -> list[str]:
    space = Space.load(run)
    with Zoo(zoo) as opened:
        task, group = task_of(opened, "cpu"), opened.group("lenet")
        preps = group.read(group.rows("val"))
    images, labels = task.inputs("val", slice(None)), task.targets("val", slice(None))
    latents = space.encode_preps(preps, "lenet")
    targets = space.networks(preps, "lenet")
    own = [space.family[0].nets(targets.flat(row)[None], images)[0].argmax(-1) for row in range(len(preps))]
    rows = []
    for width, seen in ((TRAINED, "trained"), (OTHER, "never seen")):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            modules = [space.decode(latent, "lenet", width=width) for latent in latents]
        answers = [module(images).argmax(-1) for module in modules]
        accuracy = torch.stack([(each == labels).double().mean() for each in answers]).mean()
        same = torch.stack([(one == other).double().mean() for one, other in zip(answers, own, strict=True)]).mean()
        parameters = sum(value.numel() for value in modules[0].parameters())
        rows.append(f"| {width:.2f} | {parameters:,} | {seen} | {accuracy:.1%} | {same:.1%} |")
    return rows


def test_rows_are_those_of_single_networks(
    widths_table: ModuleType,
    coordinate_run: Path,
    multi_zoo: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    words = [str(coordinate_run), "lenet", str(TRAINED), str(OTHER)]
    monkeypatch.setattr(sys, "argv", ["widths_table.py", *words])
    widths_table.main()
    printed = capsys.readouterr().out.splitlines()
    assert printed[0].startswith("targets: ") and printed[0].endswith("%")
    assert printed[1] == "| width | parameters | | accuracy | agreement with the latent's own network |"
    assert printed[3:] == expected_rows(coordinate_run, multi_zoo)
