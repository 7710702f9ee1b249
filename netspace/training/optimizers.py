"""The optimiser of a space or a coordinate network: Muon for weights that are matrices, Adam or another for the rest.

Muon orthogonalises the momentum of each matrix before each step (Jordan et al. 2024), here in the faster precision.
"""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Literal, Protocol, runtime_checkable

import torch
from pydantic import Field
from torch import Tensor, nn

from netspace.config import Settings
from netspace.distributed import chosen_by_main
from netspace.orthogonal import orthogonalise
from netspace.precision import DTYPES, choose


class Muon(torch.optim.Optimizer):
    """Steepest descent in the spectral norm, for parameters that are matrices (Jordan et al. 2024).

    The step of a matrix (R, C) is `lr * sqrt(max(1, R / C))` times the orthogonalised Nesterov momentum of its
    gradient. The state has the layout of `torch.optim.Muon`.
    """

    def __init__(
        self,
        params: Iterable[nn.Parameter],
        lr: float,
        momentum: float = 0.95,
        precision: torch.dtype = torch.float32,
    ) -> None:
        """Orthogonalise in `precision`; parameters keep theirs. Raises `ValueError` unless all are matrices."""
        super().__init__(params, {"lr": lr, "momentum": momentum})
        self.precision = precision
        if any(value.dim() != 2 for group in self.param_groups for value in group["params"]):
            raise ValueError("Muon takes matrices alone")

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """Update all parameters that have a gradient."""
        assert closure is None
        for group in self.param_groups:
            self._step(group)

    def _step(self, group: dict[str, Any]) -> None:
        values = [value for value in group["params"] if value.grad is not None]
        if not values:
            return
        for value in values:
            if "momentum_buffer" not in self.state[value]:
                self.state[value]["momentum_buffer"] = torch.zeros_like(value.grad)
        gradients = [value.grad for value in values]
        momenta = [self.state[value]["momentum_buffer"] for value in values]
        torch._foreach_lerp_(momenta, gradients, 1 - group["momentum"])
        updates = torch._foreach_lerp(gradients, momenta, group["momentum"])
        by_shape: dict[torch.Size, list[int]] = defaultdict(list)
        for index, value in enumerate(values):
            by_shape[value.shape].append(index)
        for (rows, columns), indices in by_shape.items():
            chosen = [updates[index] for index in indices]
            stacked = torch.stack(chosen) if len(chosen) > 1 else chosen[0][None]  # one alone is not copied
            steps = orthogonalise(stacked, self.precision)
            rate = group["lr"] * max(1.0, rows / columns) ** 0.5
            torch._foreach_add_([values[index] for index in indices], list(steps.unbind(0)), alpha=-rate)


class OptimizerConfig(Settings):
    """Settings of the optimiser of a space or a coordinate network."""

    name: Literal["adam", "muon", "ranger", "soap"] = (
        "adam"  # ranger: RAdam and Lookahead, NeRN's; soap: Adam in Shampoo's basis
    )
    learning_rate: float = Field(1e-4, gt=0)  # of Adam, Ranger and SOAP; with muon, of Adam on all that is not a matrix
    muon_rate: float = Field(0.01, gt=0)  # learning rate of Muon, for matrices
    # learning rate of the decoder's element-wise scale and bias; none: learning_rate
    elementwise_rate: float | None = Field(None, gt=0)
    betas: tuple[float, float] = (0.9, 0.999)  # of Adam, Ranger and SOAP
    weight_decay: float = Field(0.0, ge=0)  # decoupled: each step shrinks all weights by learning rate * weight_decay
    schedule: Literal["constant", "cosine"] = "constant"  # of the learning rates over the steps
    warmup: int = Field(0, ge=0)  # steps
    clip: float | None = Field(None, gt=0)  # maximum norm of the gradient; none: no limit
    # decay of the moving average of the weights, which is what is validated and saved; 0: no average
    ema: float = Field(0.0, ge=0, lt=1)

    def factor(self, step: int, steps: int) -> float:
        """Return the factor of the peak rates at `step` of `steps`."""
        factor = min((step + 1) / self.warmup, 1.0) if self.warmup else 1.0
        return factor * (1 + math.cos(math.pi * step / steps)) / 2 if self.schedule == "cosine" else factor


@runtime_checkable
class ParameterRoles(Protocol):
    """A model that says how to train its parameters."""

    def elementwise(self) -> list[nn.Parameter]:
        """Return the parameters whose learning rate is `elementwise_rate`."""

    def not_matrices(self) -> list[nn.Parameter]:
        """Return the parameters with two axes or more that Muon must not train."""


class Optimizer:
    """Updates a model by the settings of its optimiser; rates follow the schedule."""

    def __init__(self, model: nn.Module, config: OptimizerConfig, steps: int) -> None:
        """Take parameters with two axes or more for matrices, unless the model has `ParameterRoles`."""
        self.model, self.config, self.steps = model, config, steps
        values = [value for value in model.parameters() if value.requires_grad]
        roles = (model.elementwise(), model.not_matrices()) if isinstance(model, ParameterRoles) else ([], [])
        elementwise, others = ({id(value) for value in each} for each in roles)
        matrices = [value for value in values if value.dim() >= 2 and id(value) not in elementwise | others]
        matrices = matrices if config.name == "muon" else []
        rest_ids = {id(value) for value in values} - elementwise - {id(value) for value in matrices}
        groups: list[dict[str, Any]] = [
            {"params": [v for v in values if id(v) in rest_ids], "lr": config.learning_rate},
            {
                "params": [v for v in values if id(v) in elementwise],
                "lr": config.elementwise_rate or config.learning_rate,
            },
        ]
        groups = [group for group in groups if group["params"]]
        self.parts = [] if matrices and not groups else [_without_muon(groups, config)]
        self.views = [(value, nn.Parameter(value.detach().flatten(1))) for value in matrices]
        if matrices:
            views = [view for _, view in self.views]
            self.parts.append(Muon(views, config.muon_rate, precision=_fastest_precision(views)))
        self.peaks = [[group["lr"] for group in part.param_groups] for part in self.parts]

    def step(self, number: int) -> float:
        """Update the model from its gradients, which are cleared; return the factor of the peak rates."""
        factor = self.config.factor(number, self.steps)
        if self.config.clip is not None:
            nn.utils.clip_grad_norm_(self.model.parameters(), self.config.clip)
        for value, view in self.views:
            view.grad = None if value.grad is None else value.grad.flatten(1)
        for part, peaks in zip(self.parts, self.peaks, strict=True):
            for group, peak in zip(part.param_groups, peaks, strict=True):
                group["lr"] = peak * factor
                if self.config.weight_decay:
                    with torch.no_grad():
                        torch._foreach_mul_(group["params"], 1 - group["lr"] * self.config.weight_decay)
            part.step()
        self.model.zero_grad(set_to_none=True)
        return factor

    def state_dict(self) -> dict[str, Any]:
        """Return what a checkpoint needs."""
        return {"parts": [part.state_dict() for part in self.parts]}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from `state_dict()`."""
        for part, part_state in zip(self.parts, state["parts"], strict=True):
            part.load_state_dict(part_state)


def _fastest_precision(matrices: Sequence[Tensor]) -> torch.dtype:
    """Return the fastest precision of orthogonalisation, the same in all processes; float64 if matrices are."""
    device, dtype = matrices[0].device, matrices[0].dtype
    if dtype == torch.float64:
        return dtype
    shapes = Counter(tuple(each.shape) for each in matrices)
    stacks = [torch.ones(count, *shape, device=device) for shape, count in shapes.items()]

    def trial(precisions: dict[str, str]) -> None:
        for stack in stacks:
            orthogonalise(stack, DTYPES[precisions["muon"]])

    subject = f"muon {sorted(shapes.items())}"
    return DTYPES[chosen_by_main(lambda: choose(subject, {"muon": "auto"}, trial, device)["muon"])]


def _without_muon(groups: list[dict[str, Any]], config: OptimizerConfig) -> torch.optim.Optimizer:
    """Return the optimiser of the weights that Muon does not train."""
    if config.name == "ranger":
        from pytorch_optimizer import Lookahead

        return Lookahead(torch.optim.RAdam(groups, betas=config.betas, eps=1e-5), k=6, alpha=0.5)
    if config.name == "soap":
        from pytorch_optimizer import SOAP

        return SOAP(groups, betas=config.betas, weight_decay=0.0)
    fused = all(value.device.type in ("cpu", "cuda") for group in groups for value in group["params"])
    return torch.optim.Adam(groups, betas=config.betas, fused=fused)


class Average:
    """An exponential moving average of a model's weights, whose decay grows in the first steps."""

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.decay = decay
        self.values = {name: value.detach().clone() for name, value in model.state_dict().items()}

    @torch.no_grad()
    def update(self, model: nn.Module, step: int) -> None:
        """Include the weights after `step`."""
        decay = min(self.decay, (step + 1) / (step + 10))
        state = model.state_dict()
        names = [name for name, value in self.values.items() if value.is_floating_point()]
        torch._foreach_lerp_([self.values[name] for name in names], [state[name] for name in names], 1 - decay)

    @contextmanager
    def applied_to(self, model: nn.Module) -> Iterator[None]:
        """Give the model the averaged weights inside the block."""
        before = {name: value.detach().clone() for name, value in model.state_dict().items()}
        model.load_state_dict(self.values)
        try:
            yield
        finally:
            model.load_state_dict(before)

    def load(self, values: dict[str, Tensor]) -> None:
        """Continue from `values`, of any device."""
        for name, value in self.values.items():
            value.copy_(values[name])
