"""One file of every kind that netspace reads, and how each is read: what the fuzz test damages.

Kinds of `OURS` were written by netspace: a damaged one is refused, or read as it was written. `FOREIGN` ones, of users and
other programs, have no hash: damage may change what is read, but not into anything but values or a sentence.
"""

from __future__ import annotations

import gzip
import json
import os
from collections.abc import Callable
from dataclasses import dataclass, fields, is_dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from PIL import Image
from safetensors.torch import save_file
from torch import nn
from zoo_files import LARGE, contents, in_parts, population, zoo_at

from model_zoo.forward import Way
from model_zoo.recipe import ZooRecipe
from model_zoo.work import Plan
from netspace.archs import skeleton
from netspace.commands.convert import write_latent
from netspace.compression.fit import begin
from netspace.compression.originals import find_original
from netspace.config import load, read_back, to_yaml
from netspace.io import read_json, read_torch, write_json, write_tensors, write_torch, write_yaml
from netspace.models.autoencoder import build_autoencoder
from netspace.models.compressed import Compressed
from netspace.networks.batch import NetBatch
from netspace.networks.family import ArchClass, Family
from netspace.networks.spec import NetSpec
from netspace.networks.state_dict import folded_metadata, read_state_dict
from netspace.networks.widths import find_widths
from netspace.report.runs import read_run
from netspace.run_folder import Metrics, RunFolder, provenance, read_metrics
from netspace.saved_morph import SavedMorph, load_morphed, make_function, open_morph, write_network
from netspace.space import Space
from netspace.tasks import DataConfig
from netspace.tasks.readers import decode_one, read_idx
from netspace.training.morph import MorphConfig
from netspace.training.recipe import FitConfig, SpaceRecipe
from netspace.zoo import Zoo

SETTINGS = {"channels": 1, "image_size": 8, "classes": 10, "width": 0.15}
ZOO = {"name": "tiny", "data": {"name": "digits"}, "archs": {"lenetlike": {"arch": "lenetlike", "width": 0.15}}}
SPACE = {
    "name": "tiny",
    "latent": 16,
    "encoder": {"kind": "probe", "probes": 2, "hidden": 4},
    "decoder": {"kind": "linear"},
    "networks": 4,
    "steps": 5,
}


@dataclass(frozen=True)
class Kind:
    """A kind of file: where it lies below the folder of samples, and what is read of it as plain values."""

    file: str
    read: Callable[[Path], Any]  # of that folder


def plain(value: Any) -> Any:
    """A value that can be compared by ==: tensors and arrays by type, shape and bytes."""
    if isinstance(value, torch.Tensor):
        return str(value.dtype), tuple(value.shape), value.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()
    if isinstance(value, np.ndarray):
        return str(value.dtype), value.shape, value.tobytes()
    if is_dataclass(value) and not isinstance(value, type):
        return {each.name: plain(getattr(value, each.name)) for each in fields(value)}
    if isinstance(value, dict):
        return {str(key): plain(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [plain(inner) for inner in value]
    return value if isinstance(value, str | int | bool | float | None) else repr(value)


def zoo(path: Path) -> Any:
    with Zoo(path) as opened:
        groups = [(group.id, group.class_id, group.spec) for group in opened.archs.values()]
        return contents(path), groups, opened.header, opened.complete, opened.parts, opened.content_hash


def compressed(path: Path) -> Any:
    held = Compressed.load(path)
    return plain(
        [held.reconstruct(), held.kind, held.names, held.bits, repr(held.spec), held.predictor.config.model_dump()]
    )


def space(run: Path) -> Any:
    loaded = Space.load(run)
    return plain([loaded.model.state_dict(), loaded.recipe.model_dump(), loaded.family.to_json()])


def morph(folder: Path) -> Any:
    held = open_morph(folder)
    states = held.function.state_dict(), held.module.state_dict()
    return plain([*states, held.config.model_dump(), repr(held.spec), repr(held.data), held.split_hash])


def plan(path: Path) -> Any:
    found = Plan.read(path)
    return found and (found.recipe.model_dump(), found.split_hash, {name: str(way) for name, way in found.ways.items()})


OURS: dict[str, Kind] = {
    "zoo": Kind("zoo.h5", lambda folder: zoo(folder / "zoo.h5")),
    "part": Kind("built.h5.parts/part-1.h5", lambda folder: zoo(folder / "built.h5.parts" / "part-1.h5")),
    "plan": Kind("built.h5.parts/plan.json", lambda folder: plan(folder / "built.h5")),
    "latent": Kind("latent.safetensors", lambda folder: plain(read_state_dict(folder / "latent.safetensors"))),
    "network": Kind("network.safetensors", lambda folder: plain(read_state_dict(folder / "network.safetensors"))),
    "compressed": Kind("compressed.safetensors", lambda folder: compressed(folder / "compressed.safetensors")),
    "morph": Kind("morph/morph.safetensors", lambda folder: morph(folder / "morph")),
    "morphed": Kind("morph/network.safetensors", lambda folder: morph(folder / "morph")),
    "resized": Kind("half.safetensors", lambda folder: plain(load_morphed(folder / "half.safetensors").state_dict())),
    "checkpoint": Kind("run/checkpoints/last.pt", lambda folder: plain(read_torch(folder / "run/checkpoints/last.pt"))),
    "best": Kind("run/checkpoints/best.safetensors", lambda folder: space(folder / "run")),
    "config": Kind(
        "run/config.yaml", lambda folder: read_back(SpaceRecipe, folder / "run" / "config.yaml").model_dump()
    ),
    "provenance": Kind("run/provenance.json", lambda folder: read_json(folder / "run/provenance.json", dict[str, Any])),
    "space": Kind("run/space.json", lambda folder: space(folder / "run")),
    "evaluation": Kind("run/eval-test.json", lambda folder: plain(read_run(folder / "run"))),
    "tensors": Kind("run/eval-test.safetensors", lambda folder: plain(read_run(folder / "run"))),
    "metrics": Kind("run/metrics.jsonl", lambda folder: read_metrics(folder / "run" / "metrics.jsonl")),
}
FOREIGN: dict[str, Kind] = {
    "recipe": Kind("recipe.yaml", lambda folder: load(ZooRecipe, folder / "recipe.yaml")),
    "fit recipe": Kind("fit.yaml", lambda folder: load(FitConfig, folder / "fit.yaml")),
    "safetensors": Kind("foreign.safetensors", lambda folder: find_original(str(folder / "foreign.safetensors"), None)),
    "torch": Kind("foreign.pt", lambda folder: find_original(str(folder / "foreign.pt"), None)),
    "idx": Kind("images-idx3-ubyte", lambda folder: read_idx(folder / "images-idx3-ubyte", 3)),
    "packed idx": Kind("images-idx3-ubyte.gz", lambda folder: read_idx(folder / "images-idx3-ubyte.gz", 3)),
    "png": Kind("image.png", lambda folder: decode_one(folder / "image.png", 8)),
    "jpeg": Kind("image.jpg", lambda folder: decode_one(folder / "image.jpg", 8)),
    "old run": Kind("old/eval-test.json", lambda folder: read_run(folder / "old")),
    "old zoo": Kind("old.h5", lambda folder: zoo(folder / "old.h5")),
}


def write_samples(folder: Path) -> None:
    """Writes all files."""
    torch.manual_seed(0)
    zoo_at(folder / "zoo.h5", tiny=population(count=3), large=population(LARGE, count=2))
    in_parts(folder / "built.h5", population())
    Plan(ZooRecipe.model_validate(ZOO), "ab" * 32, {"lenetlike": Way(4)}).write(folder / "built.h5")
    module = skeleton("lenetlike", SETTINGS, (1, 8, 8))
    spec = NetSpec.from_module(module, "lenetlike", SETTINGS, (1, 8, 8))
    state = {name: value.detach() for name, value in module.state_dict().items()}
    write_latent(folder / "latent.safetensors", torch.randn(16), run="run", arch="lenetlike")
    write_tensors(folder / "network.safetensors", state, **folded_metadata(spec))
    begin(state, FitConfig.model_validate({"predictor": {"hidden": 5}}), spec).save(folder / "compressed.safetensors")
    _write_morph(folder, module, spec)
    _write_run(folder / "run", ArchClass("lenetlike", NetBatch(module, spec), (64, 24), True))
    (folder / "recipe.yaml").write_text(yaml.safe_dump(ZOO))
    (folder / "fit.yaml").write_text(to_yaml(FitConfig()))
    save_file(
        state, folder / "foreign.safetensors", metadata={"format": "pt", "arch": "x", "settings": "{", "folded": "?"}
    )
    torch.save({"epoch": 3, "state_dict": state}, folder / "foreign.pt")
    pixels = np.random.default_rng(0).integers(0, 256, (5, 8, 8), dtype=np.uint8)
    raw = bytes((0, 0, 8, 3)) + np.array(pixels.shape, ">u4").tobytes() + pixels.tobytes()
    (folder / "images-idx3-ubyte").write_bytes(raw)
    (folder / "images-idx3-ubyte.gz").write_bytes(gzip.compress(raw))
    for name in ("image.png", "image.jpg"):
        Image.fromarray(pixels.reshape(20, 16)).save(folder / name)
    (folder / "old").mkdir()
    for name in os.listdir(folder / "run"):  # a run from before files had a hash
        if name.endswith(".json"):
            (folder / "old" / name).write_text(json.dumps(read_json(folder / "run" / name, dict[str, Any])))
    (folder / "old" / "config.yaml").write_text(yaml.safe_dump(SPACE))
    _write_old_zoo(folder / "old.h5")


def _write_morph(folder: Path, module: nn.Module, spec: NetSpec) -> None:
    config = MorphConfig(batch_norm="fold")
    info = find_widths(module, torch.zeros(1, *spec.input_shape), spec.arch)
    function = make_function(module, info, config.function, 0)
    saved = SavedMorph(function, module, info, config, spec, DataConfig(name="digits"), "ab" * 32)
    saved.save(folder / "morph")
    widths = info.at(0.5)
    named = dict(zip(info.names, widths, strict=True))
    write_network(folder / "half.safetensors", saved.network(widths, batches=[]), spec, named)


def _write_run(run: Path, arch: ArchClass) -> None:
    recipe, family = SpaceRecipe.model_validate(SPACE), Family([arch])
    write_yaml(run / "config.yaml", to_yaml(recipe))
    write_json(run / "provenance.json", provenance(0, zoo="zoo.h5", zoo_hash="ab" * 32))
    write_json(run / "space.json", {"archs": family.to_json()})
    weights = build_autoencoder(recipe.latent, recipe.encoder, recipe.decoder, family).state_dict()
    RunFolder.of_space(run).save_best(weights)
    checkpoint = {
        "stage": 0,
        "step": 5,
        "score": (-0.5,),
        "model": weights,
        "optimizer": {},
        "average": None,
        "learner": {},
    }
    write_torch(run / "checkpoints" / "last.pt", checkpoint)
    for step in range(1, 6):
        Metrics(run / "metrics.jsonl").write(step=step, rate=1 / step, val_mae=0.1 / step)
    member = [f"lenetlike/{row:04d}" for row in range(3)]
    detail = {"member": member, "accuracy_target": [0.5, 0.6, 0.7], "accuracy_predicted": [0.4, 0.5, 0.6]}
    write_json(run / "eval-test.json", {"split": "test", "members": 3, "r2": 0.9, "detail": detail})
    tensors = {"latents": torch.randn(3, 16), "preps": torch.randn(2, 4, 8), "decoded": torch.randn(2, 4, 8)}
    write_tensors(run / "eval-test.safetensors", {**tensors, "shown": torch.tensor([0, 2])})


def _write_old_zoo(path: Path) -> None:
    """A zoo from before tables of members had a hash."""
    import h5py

    zoo_at(path, tiny=population(count=3))
    with h5py.File(path, "a", libver="v110") as file:
        del file["archs/tiny"].attrs["members_hash"]
