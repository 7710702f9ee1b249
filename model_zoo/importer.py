"""`netspace zoo import`: state dicts that somebody else trained become members of a zoo."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from model_zoo.recipe import ArchConfig
from model_zoo.work import Candidate, candidate, member_accuracies
from netspace import prep
from netspace.config import validate
from netspace.data import DataConfig, load
from netspace.errors import NetspaceError, UsageError
from netspace.functional import NetBatch
from netspace.runtime import generator
from netspace.spec import NetSpec
from netspace.states import flat_parameters
from netspace.store import MEMBER, SPLITS, Header, Population, Zoo, merge, write_zoo

SHARES = {"train": 0.75, "val": 0.125, "test": 0.125}


def import_members(
    path: Path,
    states: Mapping[str, Mapping[str, Tensor]],
    arch: str,
    *,
    data: DataConfig | None = None,
    width: float | None = None,
    kwargs: Mapping[str, Any] | None = None,
    split: str | None = None,
    prep_width: int | None = None,
    seed: int = 0,
) -> dict[str, Any]:
    """Adds networks (name -> state dict) to the zoo at `path`, or begins one with them.

    In an existing zoo `arch` is one of its architectures' ids, or a new architecture; the data are the zoo's. A new
    zoo needs `data`. State dicts are of the architecture with batch norm, or folded. `split` None draws splits by
    `seed`; `prep_width` None takes the zoo's, in a new zoo 8 rows of the network. All are checked and measured before anything is written.
    """
    if not states:
        raise UsageError("no state dict was given to import")
    if split is not None and split not in SPLITS:
        raise UsageError(f"split {split!r} was asked for; there are: {', '.join(SPLITS)}")
    known: NetSpec | None = None
    if path.exists():
        with Zoo(path) as zoo:
            header = zoo.header
            config = validate(DataConfig, header.data, str(path))
            if data is not None and data != config:
                raise UsageError(f"{path} is a zoo of {header.dataset}: leave the data setting out")
            if arch in zoo.archs:
                known, prep_width = zoo.archs[arch].spec, zoo.archs[arch].size[1]
            elif prep_width is None:
                prep_width = next(iter(zoo.archs.values())).size[1]  # spaces speak of PReps of one width
    else:
        config = data or DataConfig()
        header = None
    task = load(config)
    if header is None:
        header = Header(
            config.model_dump(mode="json"), task.split_hash, {"name": "import", "archs": {arch: {"arch": arch}}}
        )
    elif header.split_hash != task.split_hash:
        raise NetspaceError(f"the data here are not those that {path} was trained on: their split hash differs")
    if known is not None:
        given = ArchConfig(arch=known.arch, kwargs=dict(known.kwargs))
    else:
        given = ArchConfig(arch=arch, width=width, kwargs=dict(kwargs or {}))
    chosen = candidate(arch.replace("/", "-"), given, task, prep_width, check="imported")
    flat = torch.stack([parameters(state, chosen, name) for name, state in states.items()])
    members = np.zeros(len(flat), dtype=MEMBER)
    accuracies = member_accuracies(NetBatch(chosen.skeleton, chosen.spec), flat, task)
    drawn = _splits(len(flat), seed) if split is None else [split] * len(flat)
    for place, name in enumerate(states):
        row = members[place]
        row["run"], row["learning_rate"], row["status"] = place, np.nan, b"ok"
        row["split"], row["source"] = drawn[place].encode(), name.encode()[-160:]
        for part, values in accuracies.items():
            row[f"accuracy_{part}"] = values[place]
    population = Population(chosen.spec, prep.pack(flat, chosen.size).numpy(), members)
    if path.exists():
        new = path.with_name(f".{path.name}.import.h5")
        try:
            write_zoo(new, header, {chosen.id: population})
            counts = merge(path, [path, new])
        finally:
            new.unlink(missing_ok=True)
        duplicates = counts["duplicates"]
    else:
        write_zoo(path, header, {chosen.id: population})
        duplicates = 0
    return {
        "path": str(path),
        "arch": chosen.id,
        "imported": len(flat) - duplicates,
        "duplicates": duplicates,
        "accuracy_test": dict(zip(states, accuracies["test"].tolist(), strict=True)),
    }


def parameters(state: Mapping[str, Tensor], chosen: Candidate, name: str, folded: bool = False) -> Tensor:
    """Flat parameters (P,) of a state dict, folded if it has batch norm. Raises `NetspaceError` naming the file."""
    try:
        return flat_parameters(state, chosen.spec, folded=folded)
    except NetspaceError as error:
        raise NetspaceError(f"{name} cannot be imported: {error}") from None


def _splits(count: int, seed: int) -> list[str]:
    order = torch.randperm(count, generator=generator(seed, 13)).tolist()
    bounds = np.cumsum([SHARES[name] for name in SPLITS])
    drawn = [SPLITS[int(np.searchsorted(bounds, (place + 0.5) / count))] for place in range(count)]
    return [drawn[place] for place in order]
