"""The network that a command is about: its weights, and what runs it where that is known."""

from __future__ import annotations

import json
from pathlib import Path

from safetensors import safe_open
from torch import Tensor

from netspace import archs
from netspace.errors import UsageError
from netspace.prep import unflatten, unpack
from netspace.spec import NetSpec
from netspace.states import FILES, read_state_dict
from netspace.store import Zoo
from netspace.training.nern import Original
from netspace.training.setting import task_of


def find_original(model: str, zoo_path: Path | None, device: str = "cpu") -> tuple[Original, NetSpec | None]:
    """The network that `model` names, with its module and data where they are known.

    Raises `UsageError` for a member without a zoo, and as `read_state_dict` and `Zoo.find`.
    """
    path = Path(model)
    if path.suffix in FILES:
        state = read_state_dict(path)
        spec = _spec(path, state)
        module = None if spec is None else archs.skeleton(spec.arch, spec.settings, spec.input_shape)
        task = None
        if zoo_path is not None:
            with Zoo(zoo_path) as zoo:
                task = task_of(zoo, device)
        return Original(state, module, task if module is not None else None), spec
    if zoo_path is None:
        raise UsageError(f"{model!r} names a zoo's member, but no zoo is at hand: give --zoo, or a state-dict file")
    with Zoo(zoo_path) as zoo:
        member = zoo.find(model)
        group = zoo.group(member.arch)
        flat = unpack(group.read([member.index]), group.spec.num_parameters)[0]
        spec, task = group.spec, task_of(zoo, device)
    state = {name: value.clone() for name, value in unflatten(flat, spec).items()}
    return Original(state, archs.skeleton(spec.arch, spec.settings, spec.input_shape), task), spec


def _spec(path: Path, state: dict[str, Tensor]) -> NetSpec | None:
    """What a file of netspace's says of its network; None for other files."""
    if path.suffix != ".safetensors":
        return None
    with safe_open(path, "pt") as file:
        notes = dict(file.metadata() or {})
    if "arch" not in notes or "settings" not in notes:
        return None
    settings = json.loads(notes["settings"])
    shape = settings["channels"], settings["image_size"], settings["image_size"]
    spec = NetSpec.from_module(archs.skeleton(notes["arch"], settings, shape), notes["arch"], settings, shape)
    return None if spec.difference({name: tuple(value.shape) for name, value in state.items()}) else spec
