"""Controls for architectures that a space never saw: what their networks reach without it.

Axes: B images of a batch, C classes.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from netspace import archs
from netspace.data import TaskData
from netspace.family import ArchClass
from netspace.losses import distillation_loss
from netspace.runtime import generator
from netspace.space import Space
from netspace.training.optimizers import Optimizer, OptimizerConfig
from netspace.training.recipe import SpaceRecipe
from netspace.training.sources import Images
from netspace.training.teachers import Teacher

OPTIMIZER = OptimizerConfig(name="adam", learning_rate=0.003, schedule="cosine", warmup=50, clip=5.0)
AUTOMATIC_STEPS = 5000  # a control of more steps is trained only where it is asked for
STREAM = 89  # of random numbers: the initial weights


@contextmanager
def learnt_part_off(space: Space) -> Iterator[None]:
    """The decoder emits every element's own bias alone (its scale is 0) inside the block, whatever the latent."""
    scale = space.model.decoder.scale
    kept = scale.detach().clone()
    with torch.no_grad():
        scale.zero_()
    try:
        yield
    finally:
        with torch.no_grad():
            scale.copy_(kept)


def distilled(space: Space, arch: ArchClass, teacher: Teacher, task: TaskData) -> float:
    """Test accuracy of a fresh network of `arch` that learns from the teacher alone, as long as the space was trained.

    As many steps, of as many images, the same ones; the loss is the space's (Eq. 5). The network has its batch norm, as
    a zoo's have in training. Nothing is chosen: the last weights count.
    """
    recipe = space.recipe
    assert recipe.multi is not None
    spec = arch.spec
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(generator(recipe.seed, STREAM, space.class_id(arch.id)).initial_seed())
        network = archs.build(spec.arch, **spec.settings).to(task.device)
    _distil(network, recipe, teacher, task)
    network.eval()
    labels, right = task.test.labels, 0
    with torch.no_grad():
        for pixels, truth in task.batches("test", 1024):
            right += int((network(task.normalise(pixels)).argmax(-1) == truth).sum())
    return right / len(labels)


def _distil(network: torch.nn.Module, recipe: SpaceRecipe, teacher: Teacher, task: TaskData) -> None:
    """Trains the network on the teacher's answers and the labels."""
    assert recipe.multi is not None
    images, optimizer = Images(task, recipe.seed), Optimizer(network, OPTIMIZER, recipe.steps)
    known = None if images.fixed is None else torch.cat([teacher(chunk) for chunk in images.fixed.split(1024)])
    network.train()
    for step in range(recipe.steps):
        batch, places = images.take(step, recipe.images)
        teacher_logits = teacher(batch) if known is None else known[places]
        labels, multi = task.train.labels[places], recipe.multi
        loss = distillation_loss(network(batch)[None], teacher_logits, labels, multi.temperature, multi.alpha)
        loss.mean().backward()
        optimizer.step(step)
