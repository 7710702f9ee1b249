"""`netspace optimize`: gradient descent on latents, with the space frozen (NetSpace, Latent Space Optimization, Tab. I).

Axes: S starts, E latent size, B images, P parameters. Every start is improved by itself; they share each step's
images, the teacher's answers and one pass through the decoder. Validation images choose, test images report.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from netspace.apps.networks import resolve, write_latent, write_network, zoo_of
from netspace.apps.teachers import Teacher, teacher
from netspace.config import Settings, changed, read_back, to_yaml
from netspace.data import TaskData
from netspace.errors import UsageError
from netspace.losses import distillation_loss
from netspace.prep import unpack
from netspace.progress import progress
from netspace.runtime import alone, generator, read_torch, write_json, write_text, write_torch
from netspace.space import Space
from netspace.store import Zoo
from netspace.training.loop import task_of
from netspace.training.sources import Images
from netspace.training.steps import half
from netspace.training.validation import accuracies

NOISE = "noise"  # as a start: a latent drawn from the Gaussian of the training members' latents
SAMPLE = 4096  # training members that the Gaussian is measured on, at most


class OptimizeConfig(Settings):
    """How latents are optimised."""

    starts: tuple[str, ...]  # members, files, 'best', 'worst', 'noise'
    teacher: str = "best"  # whose answers are learnt
    alpha: float = Field(0.9, ge=0, le=1)  # of Eq. 5: the teacher's share; the rest is the labels'
    temperature: float = Field(4.0, gt=0)  # T of Eq. 3
    steps: int = Field(500, ge=1)
    learning_rate: float = Field(0.02, gt=0)  # of Adam, in units of the latents' spread over training members
    images: int = Field(128, ge=1)  # in a batch
    validate_every: int = Field(25, ge=1)  # steps
    patience: int = Field(8, ge=1)  # validations without a better start after which nothing more is tried
    seed: int = 0
    precision: Literal["float32", "bf16"] = "float32"  # of the decoder


def optimize(
    run: Path,
    config: OptimizeConfig,
    out: Path,
    resume: bool = False,
    zoo_path: Path | None = None,
    device: str = "cpu",
) -> dict[str, Any]:
    """Improves latents and writes the best one, its network and the curve to the folder `out`.

    Goes on where it was stopped with `resume`. Raises `UsageError` for a folder that holds another optimisation.
    """
    space = Space.load(run, device)
    with zoo_of(run, zoo_path) as zoo:
        task = task_of(zoo, space.device)
        master = teacher(config.teacher, zoo, task)
        center, spread = _gaussian(space, zoo)
        named = [_start(text, number, config, space, zoo, center, spread) for number, text in enumerate(config.starts)]
    with alone(out / ".lock", f"{out} is being written by another process"):
        _check_folder(out, config, run, resume)
        search = Search(space, config, task, master, torch.stack([latent for _, latent in named]), spread)
        before = accuracies(space.nets, space.decode_flat(search.start), task, "test")
        curve = search.run(out / "last.pt")
        names = [name for name, _ in named]
        return _finish(out, run, names, master, search, before, curve)


class Search:
    """Adam on the latents (S, E) alone; keeps each start's best by validation."""

    def __init__(
        self, space: Space, config: OptimizeConfig, task: TaskData, master: Teacher, start: Tensor, spread: Tensor
    ) -> None:
        self.space, self.config, self.task, self.master = space, config, task, master
        self.start, self.spread = start, spread
        self.moved = torch.zeros_like(start).requires_grad_()  # in units of the spread
        self.optimizer = torch.optim.Adam([self.moved], lr=config.learning_rate)
        self.images = Images(task, config.seed)
        self.best, self.best_accuracy = start.clone(), np.full(len(start), -1.0)
        self.curve: list[dict[str, Any]] = []

    @property
    def latents(self) -> Tensor:
        """(S, E) where the search is."""
        return self.start + self.moved * self.spread

    def loss(self, number: int) -> Tensor:
        """The distillation loss of every start, summed, on the images of a step."""
        config, space = self.config, self.space
        images, places = self.images.take(number, config.images)
        with half(config.precision, space.device):
            preps = space.model.decoder(self.latents)
        answers = space.nets(unpack(preps.float(), space.spec.num_parameters), images)
        labels = self.task.train.labels[places]
        terms = distillation_loss(answers, self.master(images), labels, config.temperature, config.alpha)
        return terms.sum()

    def validate(self, number: int, loss: float | None) -> bool:
        """Notes accuracies on validation images; returns whether a start is better than ever."""
        latents = self.latents.detach()
        found = accuracies(self.space.nets, self.space.decode_flat(latents), self.task, "val")
        better = found > self.best_accuracy
        self.best_accuracy = np.where(better, found, self.best_accuracy)
        chosen = torch.from_numpy(better).to(latents.device)[:, None]
        self.best = torch.where(chosen, latents, self.best)
        self.curve.append({"step": number, "loss": loss, "accuracy_val": found.tolist()})
        return bool(better.any())

    def run(self, checkpoint: Path) -> list[dict[str, Any]]:
        """The whole search; returns its curve. A checkpoint is written at every validation."""
        self._load(checkpoint)
        if not self.curve:
            self.validate(0, None)
        config = self.config
        with progress("optimize", config.steps, "steps") as bar:
            first = int(self.curve[-1]["step"])
            bar.begin_at(first)
            for number in range(first, config.steps):
                if self._stale() >= config.patience:
                    break
                loss = self.loss(number)
                (self.moved.grad,) = torch.autograd.grad(loss, self.moved)  # of nothing else: the space is frozen
                self.optimizer.step()
                done = number + 1
                if done % config.validate_every == 0 or done == config.steps:
                    self.validate(done, float(loss.detach()) / len(self.start))
                    self._save(checkpoint)
                bar.advance(1, f"val: {100 * self.best_accuracy.max():.1f} %")
        return self.curve

    def _stale(self) -> int:
        """Validations since any start was better than before."""
        found = np.array([record["accuracy_val"] for record in self.curve])
        latest = max(int(found[:, start].argmax()) for start in range(found.shape[1]))
        return len(found) - 1 - latest

    def _save(self, path: Path) -> None:
        held = {"moved": self.moved.detach(), "optimizer": self.optimizer.state_dict(), "curve": self.curve}
        write_torch(path, {**held, "best": self.best, "best_accuracy": torch.from_numpy(self.best_accuracy)})

    def _load(self, path: Path) -> None:
        if path.exists():
            held = read_torch(path)
            with torch.no_grad():
                self.moved.copy_(held["moved"])
            self.optimizer.load_state_dict(held["optimizer"])
            self.curve, self.best = held["curve"], held["best"].to(self.start.device)
            self.best_accuracy = held["best_accuracy"].numpy()


def _gaussian(space: Space, zoo: Zoo) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation (E,) of the training members' latents."""
    group = zoo.group(space.arch)
    latents = space.encode_preps(group.read(group.rows("train")[:SAMPLE]))
    return latents.mean(0), latents.std(0).clamp_min(1e-6)


def _start(
    text: str, number: int, config: OptimizeConfig, space: Space, zoo: Zoo, center: Tensor, spread: Tensor
) -> tuple[str, Tensor]:
    if text != NOISE:
        named = resolve(text, space, zoo)
        return named.name, named.latent
    noise = torch.randn(space.latent, generator=generator(config.seed, 13, number)).to(center.device)
    return f"{NOISE}-{number}", center + spread * noise


def _check_folder(out: Path, config: OptimizeConfig, run: Path, resume: bool) -> None:
    file = out / "config.yaml"
    if file.exists():
        if not resume:
            raise UsageError(f"{out} exists already: give --resume to go on with it, or choose another --out")
        held = read_back(OptimizeConfig, file)
        difference = changed(held.model_dump(mode="json"), config.model_dump(mode="json"))
        if difference:
            raise UsageError(
                f"{out} was begun with other settings: {difference}; resume it with its own, or choose another --out"
            )
    else:
        write_text(file, to_yaml(config))


def _finish(
    out: Path, run: Path, names: Sequence[str], master: Teacher, search: Search, before: np.ndarray, curve: list[Any]
) -> dict[str, Any]:
    space, task = search.space, search.task
    flat = space.decode_flat(search.best)
    after = accuracies(space.nets, flat, task, "test")
    chosen = int(search.best_accuracy.argmax())
    write_latent(out / "latent.safetensors", search.best[chosen], run=str(run), arch=space.arch)
    notes = {"from": names[chosen], "accuracy_test": f"{after[chosen]:.6f}"}
    write_network(out / "network.safetensors", flat[chosen], space, **notes)
    figures: dict[str, Any] = {
        "run": str(run),
        "from": list(names),
        "teacher": master.name,
        "steps": int(curve[-1]["step"]),
        "accuracy_before": before.tolist(),
        "accuracy_after": after.tolist(),
        "best": chosen,
        "curve": curve,
        "latent": str(out / "latent.safetensors"),
        "network": str(out / "network.safetensors"),
    }
    write_json(out / "optimize.json", figures)
    return figures
