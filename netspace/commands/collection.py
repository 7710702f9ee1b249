"""The sound members of a zoo, or of the zoo of a run, and what describes them: latents, weights, statistics of weights, answers.

Axes: M members, P parameters, E latent size, B inputs, C outputs, F features.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from netspace.commands.convert import LATENT, zoo_of
from netspace.errors import NetspaceError, UsageError, unknown
from netspace.networks.batch import NetBatch
from netspace.networks.family import net_batch
from netspace.networks.prep import pack, unpack
from netspace.networks.state_dict import FILES, fits, flat_parameters, read_state_dict
from netspace.networks.statistics import weight_moments
from netspace.progress import progress
from netspace.run_folder import is_run
from netspace.space import Space
from netspace.streams import Stream, generator
from netspace.tasks import NUMBERED, Task
from netspace.training.setup import task_of
from netspace.zoo import ArchGroup, MemberRef, Zoo

CHUNK = 256  # members at once
CHUNK_VALUES = 1 << 25  # parameters of them, so that memory stays bounded
ANSWER_VALUES = 512  # outputs on as many inputs as give about so many
MAX_FEATURES = 1024  # longer descriptions are sketched
SKETCH = 512  # values of a sketch
COLUMNS = ("accuracy_train", "accuracy_val", "accuracy_test", "epochs", "learning_rate", "seed", "run")
ALIASES = {"accuracy": "accuracy_test"}


@dataclass(frozen=True, eq=False)
class Group:
    """The sound members of one architecture."""

    id: str
    group: ArchGroup
    rows: np.ndarray  # (m,) in the zoo
    start: int  # position of the first among all members
    nets: NetBatch


class Collection:
    """Members of a zoo with a status of 'ok', architecture after architecture; and the space of a run, where there is one."""

    def __init__(self, path: Path, zoo: Zoo, space: Space | None, device: str) -> None:
        """Raises `NetspaceError` if no member is sound."""
        self.path, self.zoo, self.space, self.device = path, zoo, space, torch.device(device)
        known = zoo.archs if space is None else {each.id: zoo.group(each.id) for each in space.family if each.trained}
        self.groups: list[Group] = []
        count = 0
        for name, group in known.items():
            rows = np.flatnonzero(group.members["status"] == b"ok")
            self.groups.append(Group(name, group, rows, count, net_batch(group.spec, self.device)))
            count += len(rows)
        self.count = count
        if not count:
            raise NetspaceError(f"{path} has no member whose training ended: there is nothing to describe")

    @property
    def multi(self) -> bool:
        """Whether there are several architectures."""
        return len(self.groups) > 1

    @cached_property
    def table(self) -> np.ndarray:
        """The table (M,) of all members."""
        return np.concatenate([each.group.members[each.rows] for each in self.groups])

    @cached_property
    def arch_ids(self) -> np.ndarray:
        """The index (M,) of each member's architecture in `groups`."""
        return np.repeat(np.arange(len(self.groups)), [len(each.rows) for each in self.groups])

    @cached_property
    def runs(self) -> np.ndarray:
        """A number (M,) for each member's training run, different in all architectures."""
        pairs = np.stack([self.arch_ids, self.table["run"]], 1)
        return np.unique(pairs, axis=0, return_inverse=True)[1].reshape(-1)

    @property
    def units(self) -> np.ndarray:
        """A number (M,) for what splits keep together: a training run, or all members of a signal, a mesh and its variants.

        Members of a task of signals that are of none (seed -1) count by their training runs.
        """
        data = self.zoo.header.data
        if data.get("name") not in NUMBERED:
            return self.runs
        signals = self.table["seed"] // (data.get("variants") or 1)
        return np.unique(np.where(signals < 0, -1 - self.runs, signals), return_inverse=True)[1].reshape(-1)

    @cached_property
    def task(self) -> Task:
        """The task of the zoo. Raises `NetspaceError` if its data are not on this machine."""
        return task_of(self.zoo, self.device)

    def name(self, position: int) -> str:
        """Return the name of a member, such as 'resnet8/0007'."""
        group = self.groups[self.arch_ids[position]]
        return str(MemberRef(group.id, int(group.rows[position - group.start])))

    def position(self, member: MemberRef) -> int | None:
        """Return the position of a member; None if it is of another architecture or not sound."""
        for each in self.groups:
            if each.id == member.arch and len(found := np.flatnonzero(each.rows == member.index)):
                return each.start + int(found[0])
        return None

    def column(self, name: str) -> np.ndarray:
        """Return a column of the table (M,) as float64. Raises `UsageError`, which lists those of numbers."""
        name = ALIASES.get(name, name)
        if name not in COLUMNS:
            raise unknown("column of numbers", name, [*ALIASES, *COLUMNS])
        return self.table[name].astype(np.float64)

    def chunks(self, positions: np.ndarray) -> Iterator[tuple[Group, Tensor]]:
        """Yield the parameters (m, P) of members at ascending `positions`, a part of one architecture at a time."""
        for each in self.groups:
            own = positions[(positions >= each.start) & (positions < each.start + len(each.rows))] - each.start
            at_once = max(min(CHUNK, CHUNK_VALUES // each.group.spec.num_parameters), 1)
            for start in range(0, len(own), at_once):
                rows = each.rows[own[start : start + at_once]]
                yield each, unpack(each.group.read(rows), each.group.spec.num_parameters).to(self.device)

    def described(self, kind: str, positions: np.ndarray | None = None) -> np.ndarray:
        """Return a description (M, F) float32 of members, by default of all: a kind of `KINDS`.

        Raises `UsageError` for latents without a space, and for weights of several architectures.
        """
        describe = KINDS[kind]
        self.check(kind)
        chosen = np.arange(self.count) if positions is None else positions
        parts = []
        with progress(kind, len(chosen), "members") as bar:
            for group, flat in self.chunks(chosen):
                parts.append(describe(self, group, flat).float().cpu().numpy())
                bar.advance(len(flat))
        return np.concatenate(parts)

    def describe(self, kind: str, network: One) -> np.ndarray:
        """Return the description (1, F) float32 of a network. Raises as `described`."""
        self.check(kind)
        return KINDS[kind](self, network.group, network.flat).float().cpu().numpy()

    def check(self, kind: str) -> None:
        """Raise `UsageError` if members cannot be described in this way."""
        if kind == "latents" and self.space is None:
            raise UsageError(
                f"latents were asked for, but {self.path} is a zoo: give the run of a space (`netspace train`)"
            )

    def one(self, text: str) -> One:
        """Return the network that `text` names: a member, or a state-dict file.

        Raises:
            UsageError: It names no network.
            NetspaceError: Its file is damaged, or of an architecture that is not here.
        """
        if Path(text).suffix not in FILES:
            member = self.zoo.find(text)
            position = self.position(member)
            if position is None:
                raise UsageError(f"{member} is not among the members of {self.path}: {self._missing(member)}")
            ((group, flat),) = self.chunks(np.array([position]))
            return One(str(member), group, self._arch_id(group), flat, position)
        state = read_state_dict(Path(text))
        for group in self.groups:
            if fits(state, group.group.spec):
                flat = flat_parameters(state, group.group.spec)[None].to(self.device)
                return One(text, group, self._arch_id(group), flat, None)
        if set(state) == {LATENT}:
            raise NetspaceError(f"{text} holds a latent, not a network: `netspace decode` makes a network of it")
        names = ", ".join(each.id for each in self.groups)
        raise NetspaceError(
            f"{text} was expected to be a network of {names}, whose names or shapes its tensors do not have"
        )

    def _arch_id(self, group: Group) -> np.ndarray:
        return np.array([self.groups.index(group)])

    def _missing(self, member: MemberRef) -> str:
        names = [each.id for each in self.groups]
        return "its training diverged" if member.arch in names else f"they are of {', '.join(names)}"


@dataclass(frozen=True, eq=False)
class One:
    """A network that a user named."""

    name: str
    group: Group  # of its architecture
    arch_id: np.ndarray  # (1,) index of the group
    flat: Tensor  # (1, P)
    position: int | None  # of a member


@contextmanager
def opened(path: Path, zoo_path: Path | None, device: str) -> Iterator[Collection]:
    """Yield the members of a zoo file, or of the zoo that the space of a run folder was trained on.

    Raises:
        NetspaceError: `path` is neither, or the zoo is another.
    """
    if is_run(path):
        space = Space.load(path, device)
        with zoo_of(path, zoo_path) as zoo:
            yield Collection(path, zoo, space, device)
    elif zoo_path is not None:
        raise UsageError(f"--zoo is the zoo of a run, but {path} is no run folder: leave it out, or name a run")
    else:
        with Zoo(path) as zoo:
            yield Collection(path, zoo, None, device)


# --- descriptions: from the parameters (m, P) of members of one architecture to (m, F) ---


def _latents(members: Collection, group: Group, flat: Tensor) -> Tensor:
    assert members.space is not None
    return members.space.encode_preps(pack(flat, group.group.size), group.id)


def _weights(members: Collection, group: Group, flat: Tensor) -> Tensor:
    """Return the parameters, sketched if there are more than `MAX_FEATURES`."""
    return sketch(flat) if flat.shape[1] > MAX_FEATURES else flat


def _statistics(members: Collection, group: Group, flat: Tensor) -> Tensor:
    """Return the moments of every parameter, in columns of the architecture's own; others' are zero."""
    own = weight_moments(flat, group.group.spec)
    widths = [7 * len(each.group.spec.names) for each in members.groups]
    index = members.groups.index(group)
    return torch.nn.functional.pad(own, (sum(widths[:index]), sum(widths[index + 1 :])))


@torch.no_grad()
def _answers(members: Collection, group: Group, flat: Tensor) -> Tensor:
    """Return outputs (probabilities of classes, where there are any) on the first validation inputs, of which all have the same."""
    task = members.task
    count = min(max(ANSWER_VALUES // task.num_outputs, 1), task.size("val"))
    outputs = task.votes(group.nets(flat, task.inputs("val", slice(0, count))).float())
    values = torch.nan_to_num(outputs.flatten(1))
    return sketch(values) if values.shape[1] > MAX_FEATURES else values


KINDS: dict[str, Callable[[Collection, Group, Tensor], Tensor]] = {
    "latents": _latents,
    "weights": _weights,
    "statistics": _statistics,
    "answers": _answers,
}


def sketch(values: Tensor) -> Tensor:
    """Return the count sketches (m, `SKETCH`) of values (m, N), whose inner products are those of the values on average.

    Each value is added to one random entry with a random sign (Charikar, Chen and Farach-Colton, 2002).
    """
    count = values.shape[1]
    random = generator(0, Stream.SKETCHES, count)
    entries = torch.randint(SKETCH, (count,), generator=random).to(values.device)
    signs = (2 * torch.randint(2, (count,), generator=random) - 1).to(values)
    return torch.zeros(len(values), SKETCH, device=values.device).index_add_(1, entries, values.float() * signs)
