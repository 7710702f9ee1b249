"""`netspace optimize`: gradient descent on latents, with the space frozen (NetSpace, Latent Space Optimization, Tab. I).

Axes: S starts, E latent size, B images, P parameters. Every start is improved by itself; they share each step's images, the
teacher's logits and one pass through the decoder. The best is chosen on validation images and reported on test images."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from netspace.archs import trust_options
from netspace.commands.convert import Named, resolve, target_accuracy, write_latent, write_network, zoo_of
from netspace.commands.sample import known_latents
from netspace.config import Seed, Settings
from netspace.errors import UsageError
from netspace.io import hash_tensors, read_torch, resuming_from, write_tensors, write_torch
from netspace.losses import class_loss
from netspace.networks.family import ArchClass, Networks
from netspace.precision import Precision, choose
from netspace.progress import progress
from netspace.results.spaces import Optimization
from netspace.run_folder import OPTIMISATION, RunFolder, provenance
from netspace.space import Space
from netspace.streams import Stream, generator
from netspace.tasks import Task
from netspace.training.batches import Images, autocast
from netspace.training.descent import spread_over
from netspace.training.setup import AUTO, Teacher, task_of, teacher
from netspace.training.validation import accuracies, network_outputs
from netspace.zoo import Zoo, teacher_path

NOISE = "noise"  # as a start: numbers from Gaussians of the training members' latents, each by itself


class OptimizeConfig(Settings):
    """How latents are optimised."""

    starts: tuple[str, ...]  # members, files, 'best', 'worst', 'noise'; of several architectures 'noise:ARCH'
    arch: str | None = None  # decode all starts as this architecture, of the space's or another; none: each as its own
    width: float | None = Field(None, gt=0)  # of arch, where it is not that of the space's
    depth: int | None = Field(None, ge=1)  # of arch, where it is not that of the space's
    teacher: str = AUTO  # whose logits are distilled; 'auto': the zoo's teacher if it has one, else its best member
    alpha: float = Field(0.9, ge=0, le=1)  # of Eq. 5: weight of the teacher; the labels have 1 - alpha
    temperature: float = Field(4.0, gt=0)  # T of Eq. 3
    classid: float = Field(1.0, ge=0)  # weight of Eq. 6, where there are several architectures
    steps: int = Field(500, ge=1)  # of the optimiser
    learning_rate: float = Field(0.02, gt=0)  # of Adam, in units of the latents' spread over training members
    images: int = Field(128, ge=1)  # in a batch
    validate_every: int = Field(25, ge=1)  # steps
    patience: int = Field(8, ge=1)  # validations without a better start after which the search ends
    seed: Seed = 0  # of batches, and of starts from noise
    precision: Precision = "auto"  # of the decoder


def optimize(
    run: Path,
    config: OptimizeConfig,
    out: Path,
    resume: bool = False,
    zoo_path: Path | None = None,
    device: str = "cpu",
) -> Optimization:
    """Improve latents; write the best one, its network and the curve to the folder `out`.

    With `resume` an interrupted optimisation continues. Each number of a start 'noise' is drawn by itself, with its mean and standard
    deviation over the training members' latents, without their covariance (`netspace sample` has it).

    Raises:
        UsageError: a start or the teacher names no network, or the folder is that of another optimisation.
        NetspaceError: the run has no space, or the zoo is another.

    >>> config = OptimizeConfig(starts=("worst",), steps=2)
    >>> result = optimize(run, config, folder / "better")
    >>> (folder / "better" / "network.safetensors").is_file()
    True
    """
    space = Space.load(run, device)
    origin = {"run": str(run.resolve()), "run_hash": hash_tensors(*space.model.state_dict().values())}
    with zoo_of(run, zoo_path) as zoo:
        origin |= {"zoo": str(zoo.path.resolve()), "zoo_hash": zoo.content_hash}
        task = task_of(zoo, space.device)
        has_teacher = config.teacher != AUTO or teacher_path(zoo.path).exists()
        master = teacher(config.teacher if has_teacher else "best", zoo, task)
        decoding = space.select(config.arch, config.width, config.depth)
        aim = (
            None
            if (config.arch, config.width, config.depth) == (None, None, None)
            else (space.arch_class(config.arch) if decoding is space else decoding.arch_class())
        )
        starts = [_start(text, number, config, space, zoo, aim) for number, text in enumerate(config.starts)]
        aims = [space.family[start.class_id] if aim is None else aim for start in starts]
        spreads = {arch.id: spread_over(known_latents(space, zoo, arch)).clamp_min(1e-6) for arch in aims}
    froms = [word for text in config.starts for word in ("--from", text)]
    folder = RunFolder.of(OPTIMISATION, out, trust_options(), again=["--run", str(run), *froms])
    with folder.locked("written"):
        folder.check(config, resume)
        if (out / "provenance.json").exists():
            begun = folder.origin
            if (begun.run_hash, begun.teacher_hash) != (origin["run_hash"], master.hash):
                raise UsageError(
                    f"{out} was begun in another space than that of {run}, or with another teacher than {master.name}: resume "
                    f"it with its own (`{folder.command}`), or choose another --out"
                )
        origin |= {"teacher": master.name, "teacher_hash": master.hash}
        folder.begin(config, provenance(config.seed, **origin))
        search = Search(decoding, config, task, master, starts, aims, torch.stack([spreads[arch.id] for arch in aims]))
        before = accuracies(decoding.decode_all(search.start, search.class_ids), task, "test")
        curve = search.run(folder.last)
        own = [target_accuracy(space, each, task) for each in starts]
        return _finish(out, run, starts, aims, own, master, search, before, curve)


class Search:
    """Adam on the latents (S, E) alone; `best` are those of each start that were best in validation.

    Every start stays a network of its architecture: the loss of the ClassId head draws it there (NetSpace, Latent Space
    Optimization), and latents that the head takes for another architecture are never the best.
    """

    def __init__(
        self,
        space: Space,
        config: OptimizeConfig,
        task: Task,
        master: Teacher,
        starts: Sequence[Named],
        aims: Sequence[ArchClass],
        spread: Tensor,
    ) -> None:
        """`aims` are the architectures, of the space, that starts are decoded as; `spread` (S, E) is their latents'."""
        self.space, self.config, self.task, self.master = space, config, task, master
        self.start, self.spread = torch.stack([each.latent for each in starts]), spread
        self.class_ids = torch.tensor([space.class_id(each.id) for each in aims])
        self.aim = self.class_ids.to(space.device)
        self.moved = torch.zeros_like(self.start).requires_grad_()  # in units of the spread
        self.optimizer = torch.optim.Adam([self.moved], lr=config.learning_rate)
        self.images = Images(task, config.seed)
        self.best, self.best_accuracy = self.start.clone(), np.full(len(starts), -1.0)
        self.best_cost = np.full(len(starts), np.inf)
        self.curve: list[dict[str, Any]] = []
        self.precision = self._precision()

    @property
    def latents(self) -> Tensor:
        """The current latents (S, E)."""
        return self.start + self.moved * self.spread

    def _precision(self) -> str:
        """Return the decoder's precision: the one that was asked for, or the one in which a step is fastest here."""
        config, recipe = self.config, self.space.recipe

        def trial(precision: dict[str, str]) -> None:
            self.precision = precision["precision"]
            torch.autograd.grad(self.loss(0), self.moved)

        subject = (
            f"optimize {recipe.latent} {recipe.decoder} {self.space.family.size} {len(self.start)} {config.images}"
        )
        return choose(subject, {"precision": config.precision}, trial, self.space.device)["precision"]

    def loss(self, number: int) -> Tensor:
        """Return the sum over starts of the distillation loss (NetSpace, Eq. 5) and that of the ClassId head (Eq. 6) in a step."""
        config, space = self.config, self.space
        images, rows = self.images.take(number, config.images)
        latents = self.latents
        with autocast(self.precision, space.device):
            networks = Networks(space.family, space.model.decoder(latents, self.aim).float(), self.class_ids)
            class_logits = None if space.model.head is None else space.model.head(latents)
        outputs = networks.each(lambda nets, flat: nets(flat, images))
        targets = self.task.targets("train", rows)
        terms = self.task.distillation_loss(outputs, self.master(images), targets, config.temperature, config.alpha)
        if class_logits is not None and config.classid:
            terms = terms + config.classid * class_loss(class_logits, self.aim)
        return terms.sum()

    def validate(self, number: int, loss: float | None) -> bool:
        """Record accuracies on validation images; return whether a start is better than ever.

        Of equal accuracies, which few images often give, the one with the smaller cross-entropy is better.
        """
        latents, task = self.latents.detach(), self.task
        targets = task.targets("val", slice(None)).cpu()
        logits = network_outputs(self.space.decode_all(latents, self.class_ids), task, "val")
        scores = task.score(logits, targets).numpy()
        merit = task.merit(scores)
        costs = torch.stack([task.training_loss(each, targets) for each in logits]).double().numpy()
        same = (self.space.class_ids(latents) == self.class_ids).numpy()
        tied = (merit == self.best_accuracy) & (costs < self.best_cost)
        better = ((merit > self.best_accuracy) | tied) & same
        self.best_accuracy = np.where(better, merit, self.best_accuracy)
        self.best_cost = np.where(better, costs, self.best_cost)
        chosen = torch.from_numpy(better).to(latents.device)[:, None]
        self.best = torch.where(chosen, latents, self.best)
        record = {"step": number, "loss": loss, "accuracy_val": scores.tolist(), "cross_entropy_val": costs.tolist()}
        self.curve.append({**record, "better": better.tolist()})
        return bool(better.any())

    def run(self, checkpoint: Path) -> list[dict[str, Any]]:
        """Run the whole search and return its curve. A checkpoint is written at every validation."""
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
                bar.advance(1, f"val: {100 * self.task.merit(self.best_accuracy.max()):.1f} %")
        return self.curve

    def _stale(self) -> int:
        """Return the number of validations since any start was better than before, and of its own architecture."""
        latest = max((index for index, record in enumerate(self.curve) if any(record["better"])), default=0)
        return len(self.curve) - 1 - latest

    def _save(self, path: Path) -> None:
        state = {"moved": self.moved.detach(), "optimizer": self.optimizer.state_dict(), "curve": self.curve}
        best = {"best_accuracy": torch.from_numpy(self.best_accuracy), "best_cost": torch.from_numpy(self.best_cost)}
        write_torch(path, {**state, "best": self.best, **best})

    def _load(self, path: Path) -> None:
        if path.exists():
            state = read_torch(path)
            with resuming_from(path), torch.no_grad():
                self.moved.copy_(state["moved"])
                self.optimizer.load_state_dict(state["optimizer"])
                self.curve, self.best = state["curve"], state["best"].to(self.start.device)
                self.best_accuracy, self.best_cost = state["best_accuracy"].numpy(), state["best_cost"].numpy()


def _start(text: str, number: int, config: OptimizeConfig, space: Space, zoo: Zoo, aim: ArchClass | None) -> Named:
    """Return the network that `text` names, or noise."""
    word, _, name = text.partition(":")
    if word != NOISE:
        return resolve(text, space, zoo)
    if space.multi and not name and aim is None:
        raise UsageError(
            f"this space holds networks of {space.family.names}: say of which the noise is ({NOISE}:{space.family[0].id})"
        )
    arch = space.arch_class(name or None) if name or aim is None else aim
    known = known_latents(space, zoo, arch)
    noise = torch.randn(space.latent, generator=generator(config.seed, Stream.START_NOISE, number)).to(known.device)
    latent = known.mean(0) + spread_over(known).clamp_min(1e-6) * noise
    class_id = space.class_id(name or None) if name or aim is None else int(space.class_ids(latent[None])[0])
    return Named(f"{NOISE}-{number}" + (f":{name}" if name else ""), class_id, latent, None)


def _finish(
    out: Path,
    run: Path,
    starts: Sequence[Named],
    kinds: Sequence[ArchClass],
    own: list[float | None],
    master: Teacher,
    search: Search,
    before: np.ndarray,
    curve: list[Any],
) -> Optimization:
    space, task = search.space, search.task
    networks = space.decode_all(search.best, search.class_ids)
    after = accuracies(networks, task, "test")
    chosen = int(search.best_accuracy.argmax())
    write_latent(out / "latent.safetensors", search.best[chosen], run=str(run), arch=kinds[chosen].id)
    files = [out / "network.safetensors"]
    notes = [{"from": each.name, "accuracy_test": f"{value:.6f}"} for each, value in zip(starts, after, strict=True)]
    write_network(files[0], networks.flat(chosen), kinds[chosen], **notes[chosen])
    if len(starts) > 1:
        write_tensors(out / "latents.safetensors", {"latents": search.best, "class_ids": search.class_ids})
        for index, arch in enumerate(kinds):
            files.append(out / "networks" / f"{index:02d}-{arch.id}.safetensors")
            write_network(files[-1], networks.flat(index), arch, **notes[index])
    result = Optimization(
        run=str(run),
        starts=[each.name for each in starts],
        arch=[arch.id for arch in kinds],
        teacher=master.name,
        precision=search.precision,
        steps=int(curve[-1]["step"]),
        accuracy_network=own,
        accuracy_before=before.tolist(),
        accuracy_after=after.tolist(),
        best=chosen,
        curve=curve,
        latent=str(out / "latent.safetensors"),
        network=str(files[0]),
        networks=[str(file) for file in files[1:]] or [str(files[0])],
        **task.score_field(),
    )
    result.write(out / "optimize.json")
    return result
