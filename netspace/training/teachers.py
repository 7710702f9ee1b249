"""Teachers: networks of any architecture whose answers others learn from.

Axes: P parameters, B images, C classes.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from netspace.data import TaskData
from netspace.errors import NetspaceError, UsageError
from netspace.family import net_batch
from netspace.functional import NetBatch
from netspace.prep import unpack
from netspace.runtime import hash_tensors
from netspace.states import FILES, flat_parameters, metadata_spec, read_state_dict
from netspace.store import Zoo, teacher_path

AUTO = "auto"  # the teacher that was built beside the zoo


@dataclass(frozen=True)
class Teacher:
    """One network, ready to answer."""

    name: str
    nets: NetBatch
    flat: Tensor  # (P,)

    @property
    def hash(self) -> str:
        """Of its parameters: the same for the same network."""
        return hash_tensors(self.flat.cpu())

    @torch.no_grad()
    def __call__(self, images: Tensor) -> Tensor:
        """Logits (B, C) for normalised images (B, ...)."""
        return self.nets(self.flat[None], images)[0]


def teacher(text: str, zoo: Zoo, task: TaskData) -> Teacher:
    """The teacher that `text` names: 'auto', the one beside `zoo`; a member of `zoo` ('best', 'resnet8/0007'); another
    zoo's file (its best member); or a network that netspace wrote as safetensors.

    Raises `UsageError` or `NetspaceError` if it is not there or does not do this task.
    """
    if text == AUTO:
        beside = teacher_path(zoo.path)
        if not beside.exists():
            raise UsageError(
                f"{zoo.path} has no teacher beside it ({beside.name} was expected): give its recipe a 'teacher' and build "
                "it again, which trains the teacher alone, or name one (a zoo member, 'best', a zoo file, a network's file)"
            )
        text = str(beside)
    path = Path(text)
    if path.suffix == ".h5":
        with Zoo(path) as other:
            found = _member(other, "best", text)
    elif path.suffix in FILES:
        found = _file(path)
    else:
        found = _member(zoo, text, text)
    spec = found.nets.spec
    if tuple(spec.input_shape) != task.image_shape:
        raise UsageError(
            f"the teacher {text} takes images of {tuple(spec.input_shape)}, but {task.name} has {task.image_shape}"
        )
    found.nets.skeleton.to(task.device)
    found = Teacher(found.name, found.nets, found.flat.to(task.device))
    classes = found(task.normalise(task.train.images[:1])).shape[-1]
    if classes != task.num_classes:
        raise UsageError(
            f"the teacher {text} tells {classes} classes apart, but {task.name} has {task.num_classes}: give a teacher "
            "of the same task"
        )
    return found


def _member(zoo: Zoo, name: str, text: str) -> Teacher:
    member = zoo.find(name)
    group = zoo.group(member.arch)
    flat = unpack(group.read([member.index]), group.spec.num_parameters)[0]
    return Teacher(text if name == text else f"{text}:{member}", net_batch(group.spec, "cpu"), flat)


def _file(path: Path) -> Teacher:
    state = read_state_dict(path)
    spec = metadata_spec(state.metadata)
    if spec is None:
        raise NetspaceError(
            f"{path} does not say which network it holds: give a safetensors file that netspace wrote (`decode`, "
            "`interpolate --save`), a zoo member, or a zoo file"
        )
    nets = net_batch(spec, "cpu")
    return Teacher(str(path), nets, flat_parameters(state, nets.spec))
