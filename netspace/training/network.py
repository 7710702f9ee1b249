"""A single network trained on a task, with the settings of a zoo's members: the loop's optimiser, schedule and batches.

Axes: M members (networks), here 1, B inputs of a batch, C outputs.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from pydantic import Field
from torch import Tensor, nn

from netspace.config import Seed, Settings
from netspace.errors import UsageError
from netspace.tasks import Task
from netspace.training.batches import Images
from netspace.training.loop import Learner, Loop, Stage, Validation, make_accelerator
from netspace.training.optimizers import OptimizerConfig

RECORDS = 20  # of losses in a training
CALIBRATED = 16  # batches of training inputs that give batch norm its statistics


class NetworkConfig(Settings):
    """How one network is trained; by default as the members of the recipe `zoo/resnet20-fashion`."""

    epochs: int = Field(6, ge=1)  # passes over the training inputs
    batch_size: int = Field(128, ge=1)  # inputs in a batch
    # adam with a weight_decay is torch's AdamW
    optimizer: OptimizerConfig = OptimizerConfig(learning_rate=0.004, weight_decay=0.05, schedule="cosine")
    seed: Seed = 0  # of the order of inputs, and of augmentation

    def steps(self, task: Task) -> int:
        """Return the number of batches of all epochs."""
        return -(-task.size("train") * self.epochs // self.batch_size)


class NetworkLearner(Learner):
    """A network in training on the loss of its task. The last weights are kept, or their average."""

    name = "network"

    def __init__(
        self, module: nn.Module, task: Task, config: NetworkConfig, rank: int = 0, world_size: int = 1
    ) -> None:
        """Raises `UsageError` for a task whose networks have inputs or targets of their own."""
        if task.own_inputs or task.own_targets:
            raise UsageError(
                f"each network of {task.name} has data of its own, and networks of several widths share theirs: choose another task"
            )
        self.model, self.task, self.config = module.to(task.device).train(), task, config
        self.images, self.own = Images(task, config.seed), slice(rank, None, world_size)
        steps = config.steps(task)
        self.stages = [Stage(steps, config.optimizer)]
        self.log_every, self.validate_every = max(steps // RECORDS, 1), steps
        self.best: dict[str, Tensor] = {}

    def batch(self, number: int) -> tuple[Tensor, Tensor]:
        """Return this process's inputs (B, ...) and targets (B, ...) of a step."""
        inputs, index = self.images.take(number, self.config.batch_size)
        return inputs[self.own], self.task.targets("train", index[self.own])

    def terms(self, model: nn.Module, number: int, part: int) -> dict[str, Tensor]:
        """Return the task's loss."""
        inputs, targets = self.batch(number)
        return {"task": self.task.training_loss(model(inputs), targets)}

    @torch.no_grad()
    def validate(self) -> Validation:
        """Score the network on validation inputs."""
        score = network_score(self.model, self.task, "val")
        self.model.train()
        return Validation({"val_score": score}, (float(self.task.merit(score)),), f"val: {score:.4f}")

    def save_best(self, weights: dict[str, Tensor]) -> None:
        """Keep the weights; checkpoints have them."""
        self.best = {name: value.detach().clone() for name, value in weights.items()}

    def state(self) -> dict[str, Any]:
        """Return the settings and the weights that are kept."""
        return {"settings": self.settings(), "best": self.best}

    def load_state(self, state: dict[str, Any]) -> None:
        """Continue from `state()`. Raises `ValueError` if it is of other settings."""
        if state["settings"] != self.settings():
            raise ValueError("it was begun with other settings")
        self.best = {name: value.to(self.task.device) for name, value in state["best"].items()}

    def settings(self) -> str:
        """Return what decides the training, apart from the network's first weights."""
        return f"{self.task.split_hash} {self.config.model_dump_json()}"


def network_score(module: nn.Module, task: Task, split: str) -> float:
    """Return the score of one network on a split; the network is in evaluation mode then."""
    module.eval()
    return float(task.evaluate(lambda inputs: module(inputs)[None], split, torch.tensor([-1]))[0])


def calibration(task: Task, seed: int, batch_size: int, batches: int = CALIBRATED) -> list[Tensor]:
    """Return the training inputs (B, ...) by which batch norm is recalibrated: the first batches of a training."""
    images = Images(task, seed)
    return [images.take(number, batch_size)[0] for number in range(min(batches, -(-task.size("train") // batch_size)))]


def train(make: Callable[[int, int], NetworkLearner], task: Task, folder: Path) -> nn.Module:
    """Train what `make(rank, world_size)` returns, from the checkpoint in `folder` on if there is one; return its model.

    The folder gets the checkpoint `last.pt` and the records `metrics.jsonl`. Raises as `Loop.run`.
    """
    folder.mkdir(parents=True, exist_ok=True)
    accelerator, _ = make_accelerator(task.device)
    learner = make(accelerator.process_index, accelerator.num_processes)
    Loop(learner, accelerator, folder / "metrics.jsonl", folder / "last.pt").run()
    learner.model.load_state_dict(learner.best)
    return learner.model.eval()


def train_network(module: nn.Module, task: Task, config: NetworkConfig, folder: Path) -> nn.Module:
    """Train `module` in place on a task and return it, in evaluation mode. Raises as `train` and `NetworkLearner`."""
    return train(lambda rank, world_size: NetworkLearner(module, task, config, rank, world_size), task, folder)
