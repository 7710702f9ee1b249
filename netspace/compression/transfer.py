"""`netspace compress transfer`: what rebuilt weights are worth on another data set, next to the original's and to fresh ones.

The question is asked of decoupled NeRN in its public review, and answered there from CIFAR-100 to CINIC-10. Axes: B inputs of a
batch, C outputs.
"""

from __future__ import annotations

import copy
import hashlib
import statistics
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd

from netspace import archs
from netspace.archs import ArchConfig
from netspace.compression.analyse import fresh
from netspace.compression.originals import check_same, find_original, logits_of
from netspace.compression.seeds import deviation
from netspace.config import Seed, Settings
from netspace.errors import UsageError
from netspace.files import locked
from netspace.io import hash_tensors
from netspace.models.coded_predictor import load_any
from netspace.networks.state_dict import run_types
from netspace.results.transfer import STARTS, TUNED, Start, Transfer, TransferMark, TransferRow, Trial, Tuned
from netspace.streams import Stream, generator
from netspace.tasks import Classification, DataConfig, load_images
from netspace.training.loop import Validation
from netspace.training.network import NetworkConfig, NetworkLearner, network_score, train
from netspace.training.optimizers import OptimizerConfig


class TransferConfig(Settings):
    """How networks are fine-tuned on another data set; all starts are trained alike."""

    # the other data set; image_size and channels that are not given are those that the network takes
    data: DataConfig = DataConfig()
    seeds: int = Field(3, ge=1)  # trainings of each kind, which differ in the order of images and in fresh weights
    seed: Seed = 0  # of the first of them
    epochs: int = Field(10, ge=1)  # passes over the training images; the best one by validation is kept
    batch_size: int = Field(128, ge=1)  # images in a batch
    # peak learning rates of Adam that are tried; for each start, that with the best mean accuracy on validation images counts
    rates: tuple[Annotated[float, Field(gt=0, allow_inf_nan=False)], ...] = Field((5e-4, 2e-3, 8e-3), min_length=1)
    weight_decay: float = Field(0.0, ge=0)  # decoupled
    # replace the last layer by a fresh one; none: where the number of classes differs
    new_last: bool | None = None

    def training(self, rate: float, number: int) -> NetworkConfig:
        """Return the settings of the training with a learning rate and the seed of a number."""
        optimizer = OptimizerConfig(learning_rate=rate, weight_decay=self.weight_decay, schedule="cosine")
        return NetworkConfig(
            epochs=self.epochs, batch_size=self.batch_size, optimizer=optimizer, seed=self.seed + number
        )


class TransferLearner(NetworkLearner):
    """A network in training on another data set, whole or its last layer alone; the best epoch by validation is kept."""

    name, validates_first = "transfer", True

    def __init__(
        self,
        module: nn.Module,
        task: Classification,
        config: NetworkConfig,
        last: str | None,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        """`last` names the only layer that is trained; None: all of them. Raises as `NetworkLearner`."""
        super().__init__(module, task, config, rank, world_size)
        self.last, self.validate_every = last, -(-task.size("train") // config.batch_size)
        for name, value in module.named_parameters():
            value.requires_grad_(last is None or name.startswith(f"{last}."))
        self._set_mode()

    def validate(self) -> Validation:
        """Score the network on validation images."""
        result = super().validate()
        self._set_mode()
        return result

    def settings(self) -> str:
        """Return what decides the training, apart from the network's first weights."""
        return f"{super().settings()} {self.last}"

    def _set_mode(self) -> None:
        """Keep the statistics of batch norms, and whatever else training changes, where the last layer alone is trained."""
        self.model.train(self.last is None)


def transfer(
    path: Path,
    model: str,
    out: Path,
    config: TransferConfig,
    zoo_path: Path | None = None,
    arch: ArchConfig | None = None,
    key: str | None = None,
    device: str = "cpu",
) -> Transfer:
    """Fine-tune the original, the rebuilt and a fresh network on another data set; write transfer.json to the folder `out`.

    Each is trained whole and its last layer alone. Finished trainings are kept in `out`: the same call goes on where it stopped.

    Raises:
        UsageError: No architecture is known that runs the network, its last layer is no linear layer or convolution, the data set is
            not one of images with labels, or `out` was begun with other networks or settings.
        NetspaceError: `path` is no compressed file, or that of another network than `model`; as `find_original` and `load_images`.

    >>> config = TransferConfig.model_validate({"data": {"limit": 50}, "seeds": 1, "epochs": 1, "rates": [0.01]})
    >>> result = transfer(compressed, "best", folder / "digits", config, zoo)
    >>> [row.start for row in result.rows if row.tuned == "last"]
    ['original', 'rebuilt', 'random']
    """
    rebuilt = load_any(path).reconstruct()
    original, spec = find_original(model, zoo_path, arch=arch, key=key)
    check_same(path, rebuilt, model, original)
    if original.module is None:
        raise UsageError(
            f"networks are trained on another data set, and of {model} only the weights are known: give --arch"
        )
    task = load_images(_shaped(config.data, original.input_shape), torch.device(device))
    images = task.normalise(task.train.images[:2]).cpu()
    last = last_layer(original.module, images, model)
    classes = logits_of(original.module, images, model).shape[1]
    new = classes != task.num_outputs if config.new_last is None else config.new_last
    if not new and classes != task.num_outputs:
        raise UsageError(
            f"{model} has {classes} outputs and {task.name} {task.num_outputs} classes, so that the last layer cannot be kept: leave "
            "new_last out"
        )
    factory = None if spec is None else (spec.arch, spec.settings)
    if arch is not None:
        factory = arch.arch, {**arch.kwargs, **({} if arch.width is None else {"width": arch.width})}
    states = {"original": original.state, "rebuilt": rebuilt}
    starts = _Starts(original.module, states, factory, last, new, task, config)
    with locked(out / ".lock", f"another process writes {out}"):
        _check_begun(out, TransferMark(setup=starts.mark()))
        rows = [
            _row(start, tuned, starts.trials(start, tuned, out), config.rates) for start in STARTS for tuned in TUNED
        ]
        counts = {f"images_{split}": task.size(split) for split in ("train", "val", "test")}
        result = Transfer(
            file=str(path),
            data=task.name,
            classes=task.num_outputs,
            **counts,
            seeds=config.seeds,
            epochs=config.epochs,
            last_layer=last,
            new_last=new,
            rows=_compared(rows),
        )
        result.write(out / "transfer.json")
    return result


def last_layer(module: nn.Module, inputs: Tensor, model: str) -> str:
    """Return the name of the layer that makes the logits of `module` for inputs (B, ...).

    It is the last linear layer or convolution that is called, with as many outputs as there are logits. Raises `UsageError` if there
    is none.
    """
    called: list[str] = []
    hooks = [
        layer.register_forward_hook(lambda _module, _inputs, _output, name=name: called.append(name))
        for name, layer in module.named_modules()
        if isinstance(layer, nn.Linear | _ConvNd) and name
    ]
    try:
        classes = logits_of(module, inputs, model).shape[1]
    finally:
        for hook in hooks:
            hook.remove()
    layer = module.get_submodule(called[-1]) if called else None
    outputs = layer.out_features if isinstance(layer, nn.Linear) else getattr(layer, "out_channels", 0)
    if outputs == classes:
        return called[-1]
    raise UsageError(
        f"the last layer of {model} was expected to be a linear layer or a convolution inside of it, with {classes} outputs as the network "
        f"has: found {called[-1] if called else 'none'}; transfer needs one, which can be replaced"
    )


def new_layer(layer: nn.Module, outputs: int) -> nn.Module:
    """Return a fresh layer like a linear layer or convolution, with other outputs."""
    bias = layer.bias is not None
    if isinstance(layer, nn.Linear):
        return nn.Linear(layer.in_features, outputs, bias)
    assert isinstance(layer, _ConvNd)
    geometry = {name: getattr(layer, name) for name in ("kernel_size", "stride", "padding", "dilation")}
    return type(layer)(layer.in_channels, outputs, bias=bias, **geometry)


class _Starts:
    """The networks that trainings begin with, and the trainings."""

    def __init__(
        self,
        module: nn.Module,
        states: dict[str, dict[str, Tensor]],
        factory: tuple[str, Mapping[str, Any]] | None,
        last: str,
        new: bool,
        task: Classification,
        config: TransferConfig,
    ) -> None:
        self.module, self.states, self.factory, self.last = module, states, factory, last
        self.new, self.task, self.config = new, task, config

    def mark(self) -> str:
        """Return the hash of everything that decides the trainings."""
        weights = [hash_tensors(*(state[name] for name in sorted(state))) for state in self.states.values()]
        setup = " ".join([*weights, self.task.split_hash, self.config.model_dump_json()])
        return hashlib.sha256(setup.encode()).hexdigest()

    def network(self, start: Start, number: int) -> nn.Module:
        """Return a network to begin with; its fresh layers are drawn by the seed of `number`."""
        seed = generator(self.config.seed + number, Stream.TRANSFER).initial_seed()
        with torch.random.fork_rng(devices=()):
            torch.manual_seed(seed)
            if start == "random":
                module = self._fresh(seed)
            else:
                module = copy.deepcopy(self.module)
                module.load_state_dict(run_types(self.states[start], module), strict=False)
            if self.new:
                module.set_submodule(self.last, new_layer(module.get_submodule(self.last), self.task.num_outputs))
        return module

    def _fresh(self, seed: int) -> nn.Module:
        """Return the network with fresh weights, as its architecture makes it: batch norm and all, where it was folded."""
        if self.factory is not None:
            module = archs.build(self.factory[0], **self.factory[1])
            if self.last in dict(module.named_modules()):  # and not under the prefix of a wrapper
                return module
        module = copy.deepcopy(self.module)
        module.load_state_dict(fresh(module, seed), strict=False)
        return module

    def trials(self, start: Start, tuned: Tuned, out: Path) -> list[list[Trial]]:
        """Return the accuracies of all trainings of a kind: a list for each learning rate, of one for each seed."""
        return [list(self._trained(start, tuned, rate, out)) for rate in self.config.rates]

    def _trained(self, start: Start, tuned: Tuned, rate: float, out: Path) -> Iterator[Trial]:
        last = self.last if tuned == "last" else None
        for number in range(self.config.seeds):
            folder = out / f"{start}-{tuned}-{rate:g}-{number}"
            done = folder / "trial.json"
            if not done.is_file():
                training, module = self.config.training(rate, number), self.network(start, number)

                def make(
                    rank: int, world: int, module: nn.Module = module, training: NetworkConfig = training
                ) -> NetworkLearner:
                    return TransferLearner(module, self.task, training, last, rank, world)

                network = train(make, self.task, folder)
                scores = {f"accuracy_{split}": network_score(network, self.task, split) for split in ("val", "test")}
                Trial(**scores).write(done)
                (folder / "last.pt").unlink(missing_ok=True)
            yield Trial.read(done)


def _shaped(data: DataConfig, shape: tuple[int, ...] | None) -> DataConfig:
    """Return the settings of data with the side and the channels that a network takes, where they are not given."""
    if shape is None or len(shape) != 3:
        return data
    own: dict[str, Any] = {"image_size": shape[1] if shape[1] == shape[2] else None}
    own["channels"] = shape[0] if shape[0] in (1, 3) else None
    return data.model_copy(update={name: value for name, value in own.items() if getattr(data, name) is None})


def _check_begun(out: Path, mark: TransferMark) -> None:
    """Write what decides the trainings to `out`. Raises `UsageError` if it was begun with something else."""
    file = out / "setup.json"
    if not file.is_file():
        mark.write(file)
    elif TransferMark.read(file) != mark:
        raise UsageError(
            f"{out} was begun with another network, file, data set or settings: give the same, or choose another --out"
        )


def _row(start: Start, tuned: Tuned, trials: Sequence[Sequence[Trial]], rates: Sequence[float]) -> TransferRow:
    """Return the figures of the learning rate (of R) with the best mean accuracy on validation images, the smallest of equal ones."""
    means = [statistics.fmean(trial.accuracy_val for trial in each) for each in trials]
    best = max(range(len(rates)), key=lambda index: (means[index], -rates[index]))
    test = [trial.accuracy_test for trial in trials[best]]
    return TransferRow(
        start=start,
        tuned=tuned,
        rate=rates[best],
        accuracy_val=[trial.accuracy_val for trial in trials[best]],
        accuracy_test=test,
        mean=statistics.fmean(test),
        std=deviation(test),
    )


def _compared(rows: Sequence[TransferRow]) -> list[TransferRow]:
    """Return the rows, those of other starts with their differences from the original's of the same tuning and seed."""
    originals = {row.tuned: row for row in rows if row.start == "original"}
    compared = []
    for row in rows:
        if row.start == "original":
            compared.append(row)
            continue
        pairs = zip(row.accuracy_test, originals[row.tuned].accuracy_test, strict=True)
        differences = [one - other for one, other in pairs]
        more = {"difference": statistics.fmean(differences), "difference_std": deviation(differences)}
        compared.append(row.extended(TransferRow, **more))
    return compared
