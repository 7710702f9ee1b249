"""The store's contestants for `tools/bench.py`: reading and writing members, and a space trained on a huge zoo.

The plain way keeps a state dict a file (`torch.save`, `torch.load` with `weights_only=True`); ours is the zoo file.
Both sides read from the system's cache, as neither was given a disk of its own.
"""

from __future__ import annotations

import resource
import shutil
import tempfile
import time
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import torch

from netspace import archs
from netspace.config import load as load_recipe
from netspace.networks.prep import flatten, height, pack, unflatten
from netspace.networks.spec import NetSpec
from netspace.process import keep_freed_memory
from netspace.streams import generator
from netspace.tasks import DataConfig, load
from netspace.training.optimizers import Optimizer
from netspace.training.recipe import SpaceRecipe
from netspace.training.setup import prepare
from netspace.training.step import Step
from netspace.zoo import MEMBER, Header, Population, Zoo, write_zoo

BATCH = 8  # members that are read at once, as the paper's step does


@dataclass(frozen=True)
class StoreCase:
    """Members of one architecture, with random parameters."""

    arch: str = "resnet8"
    members: int = 512
    prep_width: int = 10_000

    def spec(self) -> NetSpec:
        settings: dict[str, Any] = archs.task_settings(self.arch, {}, (3, 32, 32), 10)
        return NetSpec.from_module(archs.skeleton(self.arch, settings, (3, 32, 32)), self.arch, settings, (3, 32, 32))

    def flat(self, members: int) -> torch.Tensor:
        return 0.05 * torch.randn(members, self.spec().num_parameters, generator=generator(0))

    def size(self) -> tuple[int, int]:
        return height(self.spec().num_parameters, self.prep_width), self.prep_width


class _Store:
    """A temporary folder, and the members to write there."""

    flops = 0

    def __init__(self, case: StoreCase, device: torch.device) -> None:
        self.case, self.spec, self.values = case, case.spec(), case.flat(case.members)
        self.folder = Path(tempfile.mkdtemp())
        self.turn = 0

    def batches(self) -> np.ndarray:
        """Return random members of this turn, in batches."""
        self.turn += 1
        return np.random.default_rng(self.turn).permutation(self.case.members).reshape(-1, BATCH)

    def __del__(self) -> None:
        shutil.rmtree(self.folder, ignore_errors=True)


class ReferenceWrite(_Store):
    """A file for each network."""

    def run(self) -> None:
        for number, row in enumerate(self.values):
            state = {name: value.clone() for name, value in unflatten(row, self.spec).items()}  # not its whole storage
            torch.save(state, self.folder / f"{number}.pt")


class ReferenceRead(ReferenceWrite):
    """Batches of matrices from a folder of files."""

    def __init__(self, case: StoreCase, device: torch.device) -> None:
        super().__init__(case, device)
        super().run()

    def run(self) -> None:
        for batch in self.batches():
            rows = [flatten(torch.load(self.folder / f"{number}.pt", weights_only=True), self.spec) for number in batch]
            pack(torch.stack(rows), self.case.size())


class OurWrite(_Store):
    """One zoo file, with checksums and a hash."""

    def run(self) -> None:
        preps = pack(self.values, self.case.size()).numpy()
        population = Population(self.spec, preps, np.zeros(len(preps), MEMBER))
        write_zoo(self.folder / "zoo.h5", Header({}, "", {}), {"bench": population})


class OurRead(OurWrite):
    """Batches from the zoo file."""

    def __init__(self, case: StoreCase, device: torch.device) -> None:
        super().__init__(case, device)
        super().run()
        self.zoo = Zoo(self.folder / "zoo.h5")

    def run(self) -> None:
        for batch in self.batches():
            self.zoo.only().read(batch)


def huge_zoo(path: Path, members: int, case: StoreCase) -> Path:
    """Write a zoo file of `members` copies of one network, whose chunks are compressed to a thousandth of their size."""
    data = DataConfig(name="generated", image_size=32, channels=3, crop_padding=4, flip=True)
    few = np.zeros(2, MEMBER)
    few["split"], few["status"] = [b"train", b"val"], b"ok"
    preps = pack(case.flat(2), case.size()).numpy()
    header = Header(data.model_dump(mode="json"), load(data).split_hash, {})
    write_zoo(path, header, {"bench": Population(case.spec(), preps, few)})
    table = np.repeat(few[:1], members)
    table["split"][-16:] = b"val"
    with h5py.File(path, "r+", libver="v110") as file:
        group = file["archs/bench"]
        del group["preps"], group["members"], group["prep_hashes"], group.attrs["members_hash"]
        chunks = (1, *case.size())
        same = group.create_dataset("preps", (members, *case.size()), "f4", chunks=chunks, compression="gzip")
        packed = zlib.compress(np.full(chunks, 0.01, "f4").tobytes(), 9)
        for index in range(members):
            same.id.write_direct_chunk((index, 0, 0), packed)
        group.create_dataset("members", data=table)
    return path


def train_on_a_huge_zoo(members: int, steps: int, case: StoreCase, latent: int | None = None) -> dict[str, float]:
    """Train at the paper's configuration from the file, with the settings that save memory.

    Return this process's peak memory, in bytes, and seconds a step.
    """
    keep_freed_memory()
    recipe = load_recipe(SpaceRecipe, "space/paper-cifar10").model_copy(update={"recompute": True, "accumulate": 2})
    if latent:
        recipe = recipe.model_copy(update={"latent": latent, "networks": 2, "images": 4})
    with tempfile.TemporaryDirectory() as folder, Zoo(huge_zoo(Path(folder) / "huge.h5", members, case)) as zoo:
        size = zoo.only().preps.nbytes
        setup = prepare(recipe, zoo, torch.device("cpu"))
        setup.model.decoder.recompute = True
        source = setup.train[0]
        assert source is not None and source.cache is None, "this zoo was to be read from its file"
        step = Step(setup)
        optimizer = Optimizer(setup.model, recipe.optimizer, recipe.steps)
        for number in range(steps + 1):
            if number == 1:  # the first is a warm-up
                start = time.perf_counter()
            for part in range(recipe.accumulate):
                torch.stack(list(step(setup.model, number, part).values())).sum().backward()
            optimizer.step(number)
        seconds = (time.perf_counter() - start) / steps
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return {"members": members, "zoo_bytes": size, "peak_bytes": peak, "seconds_a_step": seconds}
