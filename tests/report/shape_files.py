"""A run of shapes for the report: what `eval` and `interpolate` keep of balls and blocks."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch

from netspace.surfaces import Surface, surface, write_surfaces

SOLID = {"valid": 0.975, "single_body": 0.875, "empty": 0.025}


def shape(size: float, roundness: float) -> Surface:
    """A block at 0, a ball at 1."""
    side = torch.linspace(-1, 1, 24)
    points = torch.stack(torch.meshgrid(side, side, side, indexing="ij"), dim=-1)
    return surface(torch.lerp(points.abs().amax(-1), points.norm(dim=-1), roundness) - size)


def add_shapes(run: Path, lines: bool = True) -> None:
    """Add two members, a line of five steps and the figures of shapes to a run of `make_run`."""
    file = run / "eval-test.json"
    told = json.loads(file.read_text())
    told |= {"iou": 0.912, "chamfer": 0.0123, **SOLID}
    told["baselines"]["nearest"] |= {"iou": 0.434, "chamfer": 0.0456, **SOLID}
    between = {"latent": {**SOLID, "valid_lines": 9}, "weights": {"valid": 0.111, "empty": 0.8, "valid_lines": 0}}
    told["shapes"] = {"resolution": 64, "target": SOLID, "lines": {"lines": 10, "steps": 9, **between}}
    file.write_text(json.dumps(told))
    names = [*told["detail"]["member"][:2]]
    shapes = {"target.00": shape(0.5, 0), "target.01": shape(0.6, 1), "predicted.00": shape(0.45, 0.2)}
    shapes["predicted.01"] = shape(0.6, 0.9)
    notes: dict[str, Any] = {"members": json.dumps(names), "iou": json.dumps([0.8, 0.95]), "upright": "[2, 1]"}
    if lines:
        shapes |= line()
        notes |= {"from": names[0], "to": names[1], "gamma": json.dumps([0, 0.25, 0.5, 0.75, 1])}
    write_surfaces(run / "eval-test-shapes.safetensors", shapes, **notes)


def line() -> dict[str, Surface]:
    """Five steps from a block to a ball; of mixed weights those between are empty."""
    shapes = {f"latent.{step:02d}": shape(0.5, step / 4) for step in range(5)}
    return shapes | {
        f"weights.{step:02d}": Surface.nothing() if 0 < step < 4 else shape(0.5, step / 4) for step in range(5)
    }
