"""`netspace encode` and `netspace decode`: networks to latent files and back."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from netspace.apps.networks import read_latent, resolve, write_latent, write_network, zoo_of
from netspace.errors import NetspaceError
from netspace.runtime import write_tensors
from netspace.space import Space
from netspace.states import folded_metadata
from netspace.store import Zoo
from netspace.training.setting import task_of
from netspace.training.validation import accuracies


def encode(run: Path, network: str, output: Path, zoo_path: Path | None = None, device: str = "cpu") -> dict[str, Any]:
    """Writes the latent of a network as safetensors; returns what was written."""
    space = Space.load(run, device)
    zoo = _zoo_or_none(run, zoo_path)
    try:
        named = resolve(network, space, zoo)
    finally:
        if zoo is not None:
            zoo.close()
    arch = space.family[named.class_id].id
    write_latent(output, named.latent, run=str(run), network=named.name, arch=arch)
    return {"run": str(run), "network": named.name, "arch": arch, "latent": space.latent, "file": str(output)}


def decode(
    run: Path,
    latent: Path,
    output: Path,
    arch: str | None = None,
    zoo_path: Path | None = None,
    device: str = "cpu",
    batch_norm: bool = False,
) -> dict[str, Any]:
    """Writes the network that a latent file decodes to, with its accuracy on the test images where these are at hand.

    Its architecture is the one that the latent stands for, or `arch`. With `batch_norm` the state dict is of the class that
    was trained, as `Space.decode` says.
    """
    space = Space.load(run, device)
    code = read_latent(latent, space)
    networks = space.decode_all(code[None], arch)
    found = space.family[int(networks.class_ids[0])]
    accuracy: float | None = None
    zoo = _zoo_or_none(run, zoo_path)
    if zoo is not None:
        with zoo:
            accuracy = float(accuracies(networks, task_of(zoo, space.device), "test")[0])
    if batch_norm:
        state = space.decode(code, found.id, batch_norm=True).state_dict()
        write_tensors(output, state, **folded_metadata(found.spec, folded=False), run=str(run), latent=str(latent))
    else:
        write_network(output, networks.flat(0), found, run=str(run), latent=str(latent))
    return {
        "run": str(run),
        "arch": found.id,
        "settings": found.spec.settings,
        "parameters": found.parameters,
        "accuracy_test": accuracy,
        "file": str(output),
    }


def _zoo_or_none(run: Path, zoo_path: Path | None) -> Zoo | None:
    """The run's zoo; None if it is no longer where it was and none was named (files can still be encoded)."""
    if zoo_path is not None:
        return zoo_of(run, zoo_path)
    try:
        return zoo_of(run)
    except NetspaceError:
        return None
