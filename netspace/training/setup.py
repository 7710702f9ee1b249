"""The parts of a training: task, architectures, networks, teacher, model.

Axes: M members (networks), H W of a PRep, P parameters, B inputs, C outputs.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from netspace import archs
from netspace.config import validate
from netspace.errors import NetspaceError, UsageError
from netspace.io import hash_tensors
from netspace.models.autoencoder import AutoEncoder, build_autoencoder
from netspace.networks.batch import NetBatch
from netspace.networks.family import ArchClass, Family, Networks, declared, net_batch
from netspace.networks.prep import flatten, pack
from netspace.networks.state_dict import FILES, flat_parameters, metadata_spec, read_state_dict
from netspace.streams import Stream, generator
from netspace.tasks import Classification, DataConfig, Task, load
from netspace.training.batches import PRepSource, autocast
from netspace.training.descent import read_latents
from netspace.training.recipe import SpaceRecipe
from netspace.training.validation import MEMBERS, Comparison, accuracies, between_ends, compare, decode
from netspace.zoo import ArchGroup, Zoo, teacher_path

AUTO = "auto"  # the teacher that was built with the zoo


@dataclass(frozen=True)
class Teacher:
    """A trained network whose outputs others learn from."""

    name: str
    nets: NetBatch
    flat: Tensor  # (P,)

    @property
    def hash(self) -> str:
        """The hash of its parameters."""
        return hash_tensors(self.flat.cpu())

    @torch.no_grad()
    def __call__(self, images: Tensor) -> Tensor:
        """Return outputs (B, C) for normalised inputs (B, ...)."""
        return self.nets(self.flat[None], images)[0]


def teacher(text: str, zoo: Zoo, task: Task) -> Teacher:
    """Return the teacher that `text` names: 'auto', the one built with `zoo`; a member of `zoo` ('best', 'resnet8/0007'); another
    zoo's file (its best member); or a network that netspace wrote as safetensors.

    Raises `UsageError` or `NetspaceError` if there is none, or it is of another task, and `UsageError` for a task whose
    networks have targets of their own.
    """
    if task.own_targets:
        raise UsageError(
            f"{zoo.path} is a zoo of {task.name}, where each network is fitted to targets of its own, so none can teach the "
            "others: `optimize` and `multi` in a space's recipe learn from a teacher, and are for networks that share one task"
        )
    if text == AUTO:
        path = teacher_path(zoo.path)
        if not path.exists():
            raise UsageError(
                f"{zoo.path} has no teacher next to it ({path.name} was expected): give its recipe a 'teacher' and build "
                "it again, which trains the teacher alone, or name one (a zoo member, 'best', a zoo file, a network's file)"
            )
        text = str(path)
    path = Path(text)
    if path.suffix == ".h5":
        with Zoo(path) as other:
            master = _member(other, "best", text)
    elif path.suffix in FILES:
        master = _file(path)
    else:
        master = _member(zoo, text, text)
    spec = master.nets.spec
    if tuple(spec.input_shape) != tuple(task.input_shape):
        raise UsageError(
            f"the teacher {text} takes {task.input_noun} of {tuple(spec.input_shape)}, but {task.name} has {task.input_shape}"
        )
    master.nets.skeleton.to(task.device)
    master = Teacher(master.name, master.nets, master.flat.to(task.device))
    outputs = master(task.inputs("train", slice(1))).shape[-1]
    if outputs != task.num_outputs:
        raise UsageError(
            f"the teacher {text} tells {outputs} {task.output_noun} apart, but {task.name} has {task.num_outputs}: give a teacher "
            "of the same task"
        )
    return master


def _member(zoo: Zoo, name: str, text: str) -> Teacher:
    member = zoo[name]
    return Teacher(text if name == text else f"{text}:{member}", net_batch(member.spec, "cpu"), member.flat())


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


EXAMPLES = 512  # training members, over all architectures, that set the model's scales
FRESH = 16  # untrained networks that do so for an architecture of which no network is used in training


@dataclass
class Setup:
    """The parts of a run, on its device."""

    recipe: SpaceRecipe
    task: Task
    family: Family
    model: AutoEncoder
    train: list[PRepSource | None]  # by ClassId; None for an architecture that is only declared
    val: list[PRepSource | None]  # likewise, and where there are no validation members
    teacher: Teacher | None  # of the multi-architecture setup
    sizes: tuple[ArchClass, ...] = ()  # other architectures that networks are decoded as in training

    def with_precision(self, precision: Mapping[str, str]) -> Setup:
        """Return the setup with these precisions in its recipe."""
        return replace(self, recipe=self.recipe.model_copy(update=dict(precision)))

    @property
    def num_trained(self) -> int:
        """The number of architectures whose networks are used in training."""
        return sum(each.trained for each in self.family)


def prepare(recipe: SpaceRecipe, zoo: Zoo, device: torch.device) -> Setup:
    """Return the task, the networks and a new model for a recipe and an open zoo.

    Raises `UsageError` for a zoo of several architectures and a recipe for one, or the other way round.
    """
    task = task_of(zoo, device)
    family = family_of(recipe, zoo, task)
    groups = [zoo.archs[each.id] if each.trained else None for each in family]
    rows = [None if group is None else training_rows(recipe, zoo, group) for group in groups]
    train = [_source(group, wanted, device) for group, wanted in zip(groups, rows, strict=True)]
    val = [_source(group, None if group is None else torch.from_numpy(group.rows("val")), device) for group in groups]
    if not any(source is not None for source in val):
        raise NetspaceError(
            f"{zoo.path} has no members in its val split, and training needs some: add networks to it, with `netspace "
            "zoo import --split val` or more members.val in its recipe"
        )
    random = generator(recipe.seed, Stream.SETUP)
    examples, references = {}, {}
    for class_id, source in enumerate(train):
        group, wanted = groups[class_id], rows[class_id]
        if source is None or group is None or wanted is None:
            examples[class_id] = _fresh(family[class_id], recipe.seed, class_id)
            references[class_id] = examples[class_id][0]
        else:
            examples[class_id] = source.take(
                torch.randperm(len(source), generator=random)[: EXAMPLES // len(family)]
            ).cpu()
            best = int(group.merit(wanted.numpy()).argmax())
            references[class_id] = source.take(torch.tensor([best]))[0].cpu()
    index = torch.randint(task.size("train"), (recipe.encoder.probes,), generator=random).to(device)
    probes = task.inputs("train", index).cpu()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(recipe.seed)
        model = build_autoencoder(recipe.latent, recipe.encoder, recipe.decoder, family, probes, examples, references)
    master = None if recipe.multi is None else teacher(recipe.multi.teacher, zoo, task)
    others = {} if recipe.sizes is None else recipe.sizes.archs
    sizes = (
        declared(name, config, task.input_shape, task.num_outputs, family.size[1], device, task.arch_settings)
        for name, config in others.items()
    )
    return Setup(recipe, task, family, model.to(device), train, val, master, tuple(sizes))


def family_of(recipe: SpaceRecipe, zoo: Zoo, task: Task) -> Family:
    """Return the architectures of a space of `zoo`.

    Raises `UsageError` for several architectures without `multi`, for one alone with it, and where `multi` counts one
    that the zoo lacks or declares one that it has.
    """
    multi = recipe.multi
    if multi is None:
        if len(zoo.archs) > 1:
            raise UsageError(
                f"{zoo.path} holds {len(zoo.archs)} architectures ({', '.join(zoo.archs)}), and this recipe is for one: give it "
                "`multi`, or start from a recipe that has it (space/multi-digits)"
            )
        return Family(
            [ArchClass(group.id, net_batch(group.spec, task.device), group.size) for group in zoo.archs.values()]
        )
    for name in multi.counts:
        zoo.group(name)
    for name in multi.declared:
        if name in zoo.archs:
            raise UsageError(
                f"multi.declared names {name}, of which {zoo.path} has networks: to train on none of them, set multi.counts.{name}=0"
            )
    classes = [
        ArchClass(group.id, net_batch(group.spec, task.device), group.size, multi.counts.get(group.id, 1) > 0)
        for group in zoo.archs.values()
    ]
    width = classes[0].size[1]
    classes += [
        declared(name, config, task.input_shape, task.num_outputs, width, task.device, task.arch_settings)
        for name, config in multi.declared.items()
    ]
    if len(classes) < 2:
        raise UsageError(
            f"this recipe is for several architectures, but {zoo.path} holds {classes[0].id} alone: leave out `multi`"
        )
    return Family(classes, multi.rows)


def training_rows(recipe: SpaceRecipe, zoo: Zoo, group: ArchGroup) -> Tensor:
    """Return the rows (M,) of the training members of an architecture that the recipe uses. Raises `NetspaceError` for too few."""
    rows = torch.from_numpy(group.rows("train"))
    if not len(rows):
        raise NetspaceError(f"{zoo.path} has no members of {group.id} in its train split, and training needs some")
    wanted = recipe.multi.counts.get(group.id) if recipe.multi else None
    if wanted is not None and wanted > len(rows):
        raise UsageError(
            f"multi.counts asks for {wanted} training members of {group.id}, but {zoo.path} has {len(rows)}"
        )
    return rows[:wanted]


def task_of(zoo: Zoo, device: torch.device | str) -> Task:
    """Return the task that a zoo was trained on. Raises `NetspaceError` if the data on this machine are others."""
    task = load(validate(DataConfig, zoo.header.data, str(zoo.path)), device=device)
    if task.split_hash != zoo.header.split_hash:
        raise NetspaceError(
            f"{zoo.path} was trained on {zoo.header.dataset} with split {zoo.header.split_hash[:12]}, but the data here "
            f"have split {task.split_hash[:12]}: other images or labels would give figures that mean nothing"
        )
    return task


def images_of(zoo: Zoo, device: torch.device | str) -> Classification:
    """Return the images and labels that a zoo was trained on. Raises as `task_of`, and `UsageError` for another task."""
    task = task_of(zoo, device)
    if not isinstance(task, Classification):
        raise UsageError(f"{zoo.path} is a zoo of {task.name}: this needs one of networks that classify images")
    return task


def _source(group: ArchGroup | None, rows: Tensor | None, device: torch.device) -> PRepSource | None:
    return None if group is None or rows is None or not len(rows) else PRepSource(group, rows, device)


def _fresh(arch: ArchClass, seed: int, class_id: int) -> Tensor:
    """Return PReps (M, H, W) of untrained networks of an architecture of which no network is used in training."""
    preps = []
    with torch.random.fork_rng(devices=[]):
        for number in range(FRESH):
            torch.manual_seed(
                int(torch.randint(1 << 31, (), generator=generator(seed, Stream.FRESH_NETWORKS, class_id, number)))
            )
            network = archs.skeleton(arch.spec.arch, arch.spec.settings, arch.spec.input_shape)
            preps.append(
                pack(
                    flatten({name: value.detach() for name, value in network.named_parameters()}, arch.spec), arch.size
                )
            )
    return torch.stack(preps)


@torch.no_grad()
def validate_members(setup: Setup) -> dict[str, float]:
    """Return how well validation members are reconstructed, on validation inputs; the smallest `error` chooses the checkpoint.

    For one architecture that is the mean |difference| of accuracies. For several it is 1 - the mean accuracy of all
    predicted members and of the points of Eq. 12 between smallest and largest members, every network counted alike, as
    NetSpace's authors choose their best epoch.
    """
    task, family, model = setup.task, setup.family, setup.model
    comparisons: dict[int, Comparison] = {}
    latents: dict[int, Tensor] = {}
    correct: list[bool] = []
    for class_id, source in enumerate(setup.val):
        if source is None:
            continue
        parts = []
        for rows in torch.arange(len(source)).split(MEMBERS):
            preps = source.take(rows)
            with autocast(setup.recipe.precision, preps.device):
                codes = read_latents(model, setup.recipe, family, preps, class_id)
                predicted = decode(model, family, codes)
            target = Networks.of_class(family, class_id, preps.flatten(1)[:, : family[class_id].parameters])
            seeds = source.group.seeds(source.rows[rows].numpy())
            parts.append(compare(target, predicted, task, "val", seeds))
            correct += (predicted.class_ids == class_id).tolist()
            latents.setdefault(class_id, codes)  # of the first `MEMBERS`: ends of lines
        comparisons[class_id] = Comparison.concatenate(parts)
    figures = Comparison.concatenate(list(comparisons.values())).summary()
    if setup.recipe.multi is None:
        return {**figures, "error": figures["mae"]}
    scores = [each.accuracy_predicted for each in comparisons.values()]
    figures["classid"] = float(np.mean(correct))
    if 0 in latents and len(family) - 1 in latents:
        for class_id in family.between:
            points = between_ends(latents, family, class_id)
            with autocast(setup.recipe.precision, points.device):
                networks = decode(model, family, points)
            scores.append(accuracies(networks, task, "val"))
            figures[f"between_{family[class_id].id}"] = float(scores[-1].mean())
            figures[f"between_{family[class_id].id}_classid"] = float((networks.class_ids == class_id).double().mean())
    return {**figures, "error": 1 - float(task.merit(np.concatenate(scores)).mean())}
