"""Latents found by descent: those with which a frozen decoder gives back what networks answer.

Axes: M networks, N inputs of a split, B inputs of a step, C outputs, E latent size.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal, Protocol

import torch
import torch.nn.functional as F
from jaxtyping import Float
from pydantic import Field
from torch import Tensor

from netspace.config import Seed, Settings
from netspace.errors import UsageError, unknown
from netspace.hardware import send
from netspace.losses import class_loss, prediction_loss
from netspace.models.autoencoder import AutoEncoder
from netspace.models.encoders import ProbeEncoder
from netspace.networks.family import ArchClass, Family, Networks
from netspace.networks.prep import unpack
from netspace.streams import Stream, generator
from netspace.tasks import Task
from netspace.training.batches import CACHE_BYTES
from netspace.training.optimizers import OptimizerConfig
from netspace.training.recipe import LossConfig, SpaceRecipe
from netspace.training.validation import decode, encode, network_outputs, slices

SPREAD = 1e-4  # smallest standard deviation of a latent's values that rates are in units of
PROBE_RATE = 0.1  # of Adam, in units of the standard deviation of a latent's own numbers, where the inputs are probes
ACTIVATIONS = 1 << 25  # bytes kept for gradients of networks whose latents are refined at once: about what caches hold
SHARED_INPUTS, OWN_INPUTS = 64, 256  # of a step: the same for all networks, or of each by itself


class DescentConfig(Settings):
    """How latents are found by descent."""

    steps: int = Field(200, ge=1)
    inputs: int | None = Field(None, ge=1)  # in a step; none: 64 if networks share them, 256 of each if they do not
    rate: float = Field(0.2, gt=0)  # of Adam, in units of the training latents' spread; it falls like a cosine
    seed: Seed = 0

    def random(self, step: int) -> torch.Generator:
        """Return the random numbers by which a step's inputs are drawn."""
        return generator(self.seed, Stream.AUTO_DECODED_FIT, step)


class Samples(Protocol):
    """Inputs of M networks, and what the networks answer to them."""

    shared: bool  # whether all networks get the same inputs

    def draw(self, count: int, random: torch.Generator) -> tuple[Tensor, Tensor]:
        """Return `count` inputs, (B, ...) for all networks or (M, B, ...), and the answers (M, B, C)."""


@dataclass(frozen=True)
class AllSamples:
    """The same few inputs for all networks, of which every step takes all, and their answers."""

    inputs: Float[Tensor, "N ..."]
    values: Float[Tensor, "M N C"]
    shared = True

    def draw(self, count: int, random: torch.Generator) -> tuple[Tensor, Tensor]:
        """Return all inputs (N, ...) and the answers (M, N, C), whatever `count`."""
        return self.inputs, self.values


@dataclass(frozen=True)
class SharedSamples:
    """The same inputs for all networks, and their answers."""

    inputs: Float[Tensor, "N ..."]
    values: Float[Tensor, "M N C"]
    columns: Tensor | None = None  # of the inputs that are drawn from, which of these N each is; none: all are there
    shared = True

    def draw(self, count: int, random: torch.Generator) -> tuple[Tensor, Tensor]:
        """Return `count` inputs (B, ...), drawn with replacement, and the answers (M, B, C) of all networks."""
        drawn = torch.randint(len(self.inputs if self.columns is None else self.columns), (count,), generator=random)
        columns = send(drawn if self.columns is None else self.columns[drawn], self.inputs.device)
        return self.inputs[columns], self.values[:, columns]

    @classmethod
    def for_all(cls, inputs: Float[Tensor, "N ..."], values: Tensor, networks: int) -> SharedSamples:
        """Take the answers (N, C) that all networks should give, or (M, N, C).

        Raises `UsageError` if they do not fit, if there are none, and for numbers that are not finite.
        """
        shape = tuple(values.shape)
        if not len(inputs):
            raise UsageError("latents are refined by what networks answer, but no inputs were given: give 1 or more")
        if (
            values.ndim not in (2, 3)
            or shape[-2] != len(inputs)
            or (values.ndim == 3 and shape[0] not in (1, networks))
        ):
            raise UsageError(
                f"outputs of {shape} were given for {len(inputs):,} inputs and {networks:,} latents: they were expected to be "
                "(inputs, outputs), or (latents, inputs, outputs)"
            )
        for name, given in (("inputs", inputs), ("outputs", values)):
            if not torch.isfinite(given).all():
                raise UsageError(f"{name} were given that are not all finite: latents cannot be refined by them")
        return cls(inputs, values.detach().expand(networks, *shape[-2:]))

    @classmethod
    def of_networks(cls, networks: Networks, task: Task, split: str, config: DescentConfig) -> SharedSamples:
        """Ask networks (M,) for their answers to the first inputs of a split: to as many as fit 1 GiB.

        Where a descent draws fewer, they are asked for those alone.
        """
        one = task.inputs(split, slice(1))
        size = (one.numel() + len(networks) * task.num_outputs) * 4
        count = min(task.size(split), max(CACHE_BYTES // size, 1))
        at_once = config.inputs or SHARED_INPUTS
        if config.steps * at_once >= count:
            values = network_outputs(networks, task, split, limit=count).to(one.device)
            return cls(task.inputs(split, slice(count)), values)
        steps = [torch.randint(count, (at_once,), generator=config.random(step)) for step in range(config.steps)]
        index = torch.cat(steps).unique()
        columns = torch.zeros(count, dtype=torch.int64).index_copy_(0, index, torch.arange(len(index)))
        index = send(index, one.device)
        values = network_outputs(networks, task, split, index=index).to(one.device)
        return cls(task.inputs(split, index), values, columns)


@dataclass(frozen=True)
class OwnSamples:
    """Inputs of each network by itself, such as points of its shape, and its answers."""

    points: Float[Tensor, "M N D"]
    values: Float[Tensor, "M N C"]
    shared = False

    def __len__(self) -> int:
        return len(self.points)

    def take(self, rows: Tensor, columns: Tensor) -> tuple[Tensor, Tensor]:
        """Return the points and values (S, B, ...) of networks `rows` (S,), at `columns` (S, B) of each."""
        return self.points[rows[:, None], columns], self.values[rows[:, None], columns]

    def draw(self, count: int, random: torch.Generator) -> tuple[Tensor, Tensor]:
        """Return `count` points (M, B, D) of each network, drawn with replacement, and its answers (M, B, C)."""
        device = self.points.device
        columns = torch.randint(self.points.shape[1], (len(self), count), generator=random)
        return self.take(torch.arange(len(self), device=device), send(columns, device))

    @classmethod
    def of_networks(
        cls, networks: Networks, seeds: Tensor, task: Task, split: str, limit: int | None = None
    ) -> OwnSamples:
        """Ask networks, identified by `seeds` (M,), at the first points of a split: at most `limit`, and as many as fit 1 GiB."""
        size = len(networks) * (task.num_outputs + task.input_shape[0]) * 4
        count = min(task.size(split), limit or task.size(split), max(CACHE_BYTES // size, 1))
        points = task.inputs(split, slice(count), seeds).expand(len(networks), -1, -1)
        return cls(points, network_outputs(networks, task, split, seeds, count).to(points.device))


AnswerLoss = Literal["values", "classes"] | Callable[[Tensor, Tensor], Tensor]


def answer_loss(loss: AnswerLoss, terms: LossConfig) -> Callable[[Tensor, Tensor], Tensor]:
    """Return a loss between outputs and those expected, (M, B, C) each: 'values', 'classes' by a space's settings, or as it is.

    Raises `UsageError` for another name. The losses that have a name raise it for outputs of another number than expected.
    """
    if loss == "values":
        return _of_values
    if loss == "classes":
        return lambda outputs, expected: _of_classes(outputs, expected, terms)
    if isinstance(loss, str):
        raise unknown("loss", loss, ["values", "classes"])
    return loss


def _of_values(outputs: Tensor, expected: Tensor) -> Tensor:
    _check_number(outputs, expected)
    return F.mse_loss(outputs, expected)


def _of_classes(outputs: Tensor, expected: Tensor, terms: LossConfig) -> Tensor:
    if expected.shape[-1] < 2:
        raise UsageError(
            "loss='classes' was asked for, but networks of one output tell no classes apart: take 'values'"
        )
    _check_number(outputs, expected)
    return prediction_loss(outputs, expected, terms.temperature, terms.relative)


def _check_number(outputs: Tensor, expected: Tensor) -> None:
    if outputs.shape[-1] != expected.shape[-1]:
        raise UsageError(
            f"outputs of {expected.shape[-1]} numbers were given, but these networks give {outputs.shape[-1]} for each input"
        )


def spread_of(latents: Float[Tensor, "M E"]) -> Tensor:
    """Return the standard deviation of all numbers of latents, for each of them (E,): the unit of rates where no others are known.

    It is about one and a half times that of a number over the networks of a zoo. Raises `UsageError` for numbers that are all equal, or
    not finite.
    """
    if not torch.isfinite(latents).all():
        raise UsageError(
            "the latents have numbers that are not finite: begin at those of networks that the space encodes"
        )
    spread = latents.std()
    if not float(spread) > 0:
        raise UsageError(
            "the latents' numbers are all equal, which says nothing of the space's scale: begin at one that it encodes"
        )
    return spread.expand(latents.shape[1])


def spread_over(latents: Float[Tensor, "N E"]) -> Tensor:
    """Return the standard deviation of each number of latents over networks (E,): the unit of rates.

    Where they do not differ, as those of a single network, it is that of `spread_of`, which raises `UsageError`.
    """
    spread = latents.std(0, correction=min(len(latents) - 1, 1))
    return spread if bool(spread.any()) else spread_of(latents)


@contextmanager
def gradients() -> Iterator[None]:
    """Compute with gradients inside the block, or in the function that this decorates, under `torch.inference_mode` too."""
    with torch.inference_mode(False), torch.enable_grad():
        yield


def descend(
    loss: Callable[[Tensor, Tensor, Tensor], Tensor],
    start: Float[Tensor, "M E"],
    spread: Tensor,
    samples: Samples,
    config: DescentConfig,
    tick: Callable[[], None] = lambda: None,
) -> Float[Tensor, "M E"]:
    """Return latents after `config.steps` steps of Adam on a loss of all of them at once, of which each depends on one.

    Args:
        loss: from latents (M, E), inputs and answers (M, B, C) to a scalar, the sum over networks. Whatever else it
            depends on is frozen.
        start: where the descent begins.
        spread: of latents, (E,) or (M, E), by value; the unit of rates.
        samples: of the M networks.
        config: steps, inputs, rate and seed.
        tick: is called after each step.
    """
    start, spread = start.detach(), spread.detach().clamp_min(SPREAD)
    moved = torch.zeros_like(start).requires_grad_()
    optimizer, schedule = torch.optim.Adam([moved]), OptimizerConfig(schedule="cosine")
    count = config.inputs or (SHARED_INPUTS if samples.shared else OWN_INPUTS)
    for number in range(config.steps):
        inputs, values = samples.draw(count, config.random(number))
        (moved.grad,) = torch.autograd.grad(loss(start + moved * spread, inputs, values), moved)  # of nothing else
        optimizer.param_groups[0]["lr"] = config.rate * schedule.factor(number, config.steps)
        optimizer.step()
        tick()
    return (start + moved * spread).detach()


def toward_answers(
    run: Callable[[Tensor, Tensor], Tensor],
    start: Float[Tensor, "M E"],
    samples: Samples,
    of_answers: Callable[[Tensor, Tensor], Tensor],
    config: DescentConfig,
) -> Float[Tensor, "M E"]:
    """Return latents after a descent on a loss between what their networks, run by `run`, answer and what the samples say.

    Rates are in units of `spread_of` the latents, which raises `UsageError`.
    """
    if not len(start):
        return start

    def of_latents(moved: Tensor, inputs: Tensor, expected: Tensor) -> Tensor:
        return len(start) * of_answers(run(moved, inputs), expected)

    return descend(of_latents, start, spread_of(start), samples, config)


@gradients()
def read_latents(
    model: AutoEncoder, recipe: SpaceRecipe, family: Family, preps: Float[Tensor, "M H W"], class_id: int
) -> Float[Tensor, "M E"]:
    """Return the latents that a space reads from PReps of one architecture: the encoder's, refined where the recipe says so.

    `encoder.refine` steps of Adam move each latent by itself until the network that it decodes to answers to the encoder's probes
    more as the encoded one does; no other inputs are needed. Each stays a network of its architecture, by the loss of the ClassId
    head (NetSpace, Eq. 6) where there are several.
    """
    latents, config, encoder = encode(model, preps, class_id), recipe.encoder, model.encoder
    if not config.refine or not isinstance(encoder, ProbeEncoder) or not len(preps):
        return latents
    nets, probes, of_answers = family[class_id].nets, encoder.probes.detach(), answer_loss(config.answers, recipe.loss)
    descent, found = DescentConfig(steps=config.refine, rate=PROBE_RATE, seed=recipe.seed), []
    at_once = max(recipe.networks * recipe.images // len(probes), 1)
    if len(latents) > at_once:
        at_once = max(at_once, _networks_at_once(family[class_id], probes))
    for part in slices(len(latents), at_once):
        ids = torch.full((len(latents[part]),), class_id)
        with torch.no_grad():
            answers = nets(unpack(preps[part], nets.spec.num_parameters), probes).float()

        def of_latents(moved: Tensor, inputs: Tensor, expected: Tensor, ids: Tensor = ids) -> Tensor:
            flat = unpack(decode(model, family, moved, ids).preps, nets.spec.num_parameters)
            total = len(ids) * of_answers(nets(flat, inputs).float(), expected)
            if model.head is None:
                return total
            return total + class_loss(model.head(moved), ids.to(moved.device)).sum()

        spread = latents[part].std(1, keepdim=True)
        found.append(descend(of_latents, latents[part], spread, AllSamples(probes, answers), descent))
    return torch.cat(found)


def _networks_at_once(arch: ArchClass, inputs: Tensor) -> int:
    """Return how many networks keep at most `ACTIVATIONS` bytes for their gradients, when they run on these inputs (B, ...)."""
    total = 0

    def count(tensor: Tensor) -> Tensor:
        nonlocal total
        total += tensor.numel() * tensor.element_size()
        return tensor

    flat = torch.zeros(1, arch.parameters, device=inputs.device, requires_grad=True)
    with torch.autograd.graph.saved_tensors_hooks(count, lambda tensor: tensor):
        arch.nets(flat, inputs)
    return ACTIVATIONS // max(total, 1)
