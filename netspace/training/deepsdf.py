"""What an auto-decoder learns from: the outputs of networks at points of their own (DeepSDF, Park et al. 2019).

Axes: N training networks, M other networks, B points of each, S shapes of a batch, C outputs, E latent size.
"""

from __future__ import annotations

import statistics
import time
from copy import deepcopy

import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor, nn

from netspace.config import Seed, Settings
from netspace.hardware import send
from netspace.models.auto_decoder import AutoDecoder
from netspace.run_folder import RunFolder
from netspace.streams import Stream, generator
from netspace.training.batches import Shuffle, unwrapped
from netspace.training.descent import DescentConfig, OwnSamples, descend, spread_over
from netspace.training.loop import Learner, Stage, Validation
from netspace.training.optimizers import Optimizer, OptimizerConfig
from netspace.training.validation import slices

VALIDATED = 64  # training shapes whose validation points are compared
VALIDATIONS = 10  # in a training
TRIALS = 5  # steps that are timed


class DeepSdfConfig(Settings):
    """How the auto-decoder is trained, and how latents of other shapes are found."""

    hidden: int | None = Field(None, ge=4)  # outputs of a hidden layer; none: as many parameters as the space's decoder
    layers: int = Field(4, ge=2)  # hidden layers
    steps: int | None = Field(None, ge=1)  # of training; none: as many as take the time that the space was trained for
    shapes: int = Field(64, ge=1)  # in a batch
    points: int = Field(128, ge=1)  # of each shape in a batch
    prior: float = Field(1e-4, ge=0)  # weight of |z|^2, of a Gaussian prior on latents (DeepSDF, Eq. 9 and 10)
    optimizer: OptimizerConfig = OptimizerConfig(
        name="muon", learning_rate=1e-3, muon_rate=0.01, elementwise_rate=5e-3, schedule="cosine", warmup=50
    )
    fit_steps: int = Field(300, ge=1)  # of Adam on the latents of other shapes
    fit_points: int = Field(256, ge=1)  # of each shape in such a step
    fit_rate: float = Field(0.1, gt=0)  # of Adam, in units of the training latents' spread
    seed: Seed = 0

    @property
    def descent(self) -> DescentConfig:
        """How latents of other shapes are found."""
        return self.refining(self.fit_steps)

    def refining(self, steps: int) -> DescentConfig:
        """Return how other latents are refined by so many steps, at the same points."""
        return DescentConfig(steps=steps, inputs=self.fit_points, rate=self.fit_rate, seed=self.seed)


class DeepSdfLearner(Learner):
    """An auto-decoder and the latents of its shapes in training: the absolute difference (DeepSDF, Eq. 4, not clamped).

    Differences are not clamped, as networks are compared at all points, far ones as well.
    """

    name = "deepsdf"
    model: AutoDecoder

    def __init__(
        self,
        config: DeepSdfConfig,
        model: AutoDecoder,
        train: OwnSamples,
        val: OwnSamples,
        folder: RunFolder,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        """Take `config` with its number of steps, and points for validation of the first training shapes."""
        assert config.steps is not None
        self.config, self.model, self.train, self.val, self.folder = config, model, train, val, folder
        self.rank, self.world_size = rank, world_size
        self.shuffle = Shuffle(len(train), config.seed, Stream.AUTO_DECODED_SHAPES)
        self.stages = [Stage(config.steps, config.optimizer)]
        self.validate_every = max(config.steps // VALIDATIONS, 1)
        self.log_every = max(self.validate_every // 5, 1)

    def terms(self, model: nn.Module, number: int, part: int) -> dict[str, Tensor]:
        """Return the absolute difference and the prior of a step's shapes, those of this process."""
        config, latents = self.config, unwrapped(model).latents
        count = min(config.shapes, len(self.train))
        rows = self.shuffle.take(number * count, count)
        random = generator(config.seed, Stream.AUTO_DECODED_POINTS, number)
        columns = torch.randint(self.train.points.shape[1], (count, config.points), generator=random)
        own = slice(self.rank, None, self.world_size) if self.world_size <= count else slice(None)
        rows, columns = send(rows[own], latents.device), send(columns[own], latents.device)
        points, values = self.train.take(rows, columns)
        codes = latents[rows]
        difference = (model(codes, points) - values).abs().mean()
        return {"difference": difference, "prior": config.prior * codes.square().sum(1).mean()}

    @torch.no_grad()
    def validate(self) -> Validation:
        """Compare training shapes at other points: the mean absolute difference."""
        latents = self.model.latents[: len(self.val)]
        outputs = field_values(self.model, latents, self.val.points)
        error = float((outputs - self.val.values).abs().mean())
        return Validation({"val_difference": error}, (-error,), f"val: difference {error:.4f}")

    def save_best(self, weights: dict[str, Tensor]) -> None:
        """Save decoder and latents."""
        if self.rank == 0:
            self.folder.save_best(weights)

    def seconds_a_step(self) -> float:
        """Return how long a whole step takes here: the median of a few of a copy, which change nothing."""
        model, times = deepcopy(self.model), []
        optimizer = Optimizer(model, self.config.optimizer, TRIALS + 1)
        for number in range(TRIALS + 1):
            start = time.perf_counter()
            torch.stack(list(self.terms(model, number, 0).values())).sum().backward()
            optimizer.step(number)
            if model.latents.is_cuda:
                torch.cuda.synchronize()
            times.append(time.perf_counter() - start)
        return statistics.median(times[1:])  # the first one sets up


@torch.no_grad()
def field_values(model: AutoDecoder, latents: Tensor, points: Tensor, at_once: int = 1 << 16) -> Float[Tensor, "M B C"]:
    """Return values at points (M, B, D) of each shape, a few shapes at a time."""
    parts = slices(len(latents), max(at_once // points.shape[1], 1))
    return torch.cat([model(latents[part], points[part]) for part in parts])


def fit_latents(model: AutoDecoder, samples: OwnSamples, config: DeepSdfConfig) -> Float[Tensor, "M E"]:
    """Return the latents with which a frozen decoder gives back the values of other shapes (DeepSDF, Eq. 10).

    All latents at once: Adam from the mean of the training latents, on the absolute difference and the prior.
    """
    known = model.latents.detach()
    start = known.mean(0).expand(len(samples), -1)

    def loss(latents: Tensor, points: Tensor, values: Tensor) -> Tensor:
        difference = (model(latents, points) - values).abs().mean((1, 2))
        return (difference + config.prior * latents.square().sum(1)).sum()

    return descend(loss, start, spread_over(known), samples, config.descent)
