"""State dicts, from modules and files, as flat parameters; running any module with another state dict.

Axes: P parameters, B inputs, N images, C outputs.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import ExitStack
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float32
from torch import Tensor, nn
from torch.func import functional_call

from netspace import archs
from netspace.errors import NetspaceError, UsageError, absent, unknown
from netspace.io import read_tensors, read_torch
from netspace.networks.folding import fold, unfold
from netspace.networks.graph import batch_norms, listed
from netspace.networks.kernels import Layer, layer_of
from netspace.networks.prep import flatten, is_integer, parameter_problem, unflatten
from netspace.networks.spec import NetSpec
from netspace.tasks import Classification

FILES = (".safetensors", ".pt", ".pth")  # suffixes of files of state dicts
FACTORY = re.compile(r"[\w.]+:\w+")  # name of an architecture outside netspace
PREFIXES = ("module.", "_orig_mod.", "model.")  # that wrappers put before every name
WEIGHTS = ("weight", "bias")  # names of parameters if no architecture says which tensors are parameters


class StateDict(dict[str, Tensor]):
    """A state dict with the metadata of its file."""

    def __init__(self, tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None) -> None:
        super().__init__(tensors)
        self.metadata = dict(metadata or {})

    @property
    def folded(self) -> bool:
        """Whether the metadata say that batch norm is folded, as in all networks that netspace writes."""
        if "folded" in self.metadata:
            return self.metadata["folded"] == "true"
        return {"arch", "settings"} <= self.metadata.keys()  # in files of earlier versions


def folded_metadata(spec: NetSpec, *, folded: bool = True) -> dict[str, str]:
    """Return the metadata of a network's file: its spec, and whether batch norm is folded."""
    return {
        "arch": spec.arch,
        "settings": json.dumps(spec.settings),
        "input_shape": json.dumps(spec.input_shape),
        "folded": "true" if folded else "false",
    }


def metadata_spec(metadata: Mapping[str, str]) -> NetSpec | None:
    """Return the spec of the network that a file's metadata describe; None if they describe none.

    Raises `UsageError` for an architecture outside netspace that is not trusted.
    """
    try:
        arch, settings = metadata["arch"], json.loads(metadata["settings"])
        if "input_shape" in metadata:
            shape = tuple(int(side) for side in json.loads(metadata["input_shape"]))
        else:  # in files of earlier versions
            shape = settings["channels"], settings["image_size"], settings["image_size"]
    except (KeyError, ValueError, TypeError, RecursionError):
        return None
    outside = FACTORY.fullmatch(arch) is not None
    if not isinstance(settings, dict) or not (outside or arch in archs.names()):
        return None
    try:
        return NetSpec.from_module(archs.skeleton(arch, settings, shape), arch, settings, shape)
    except (NetspaceError, TypeError, ValueError):  # other programs may use the name of one of our architectures
        if outside:
            raise
        return None


def check_tensors(state: Mapping[str, Tensor], origin: str, parameters: Collection[str] | None = None) -> None:
    """Refuse tensors that cannot be parameters: complex, integer, boolean, quantised, sparse or without values.

    `origin` is the state dict's name in the message. `parameters` are the names of tensors that are parameters; others,
    buffers, may hold integers. If it is None, tensors of int8 and tensors called 'weight' or 'bias' are parameters.
    Raises `NetspaceError` naming the first tensor at fault.
    """
    for name, value in state.items():
        problem = parameter_problem(value)
        if parameters is None:
            is_parameter = value.dtype == torch.int8 or name.rpartition(".")[2] in WEIGHTS
        else:
            is_parameter = name in parameters
        if problem and (is_parameter or not is_integer(value)):
            raise NetspaceError(
                f"{name} of {origin} {problem}, but a network is dense tensors of real floating-point numbers: convert it "
                "before saving it"
            )


@torch.inference_mode(False)  # a caller in that mode may not be the last
def _built(spec: NetSpec) -> nn.Module:
    """Return a fresh network as it is trained; torch's random state stays as it was."""
    with torch.random.fork_rng(devices=()):
        return archs.build(spec.arch, **spec.settings)


class _TrainedState:
    """The names in an architecture's state dict as it is trained, before batch norm is folded, by their roles."""

    def __init__(self, spec: NetSpec) -> None:
        self.spec, self.label = spec, f"this state dict of {spec.arch!r}"
        module = _built(spec)
        self.state = module.state_dict()
        self.parameters = dict(module.named_parameters())
        norms = batch_norms(module)
        statistics = (f"{norm}.running_{each}" for norm in norms for each in ("mean", "var"))
        self.statistics = [name for name in statistics if name in self.state]
        counters = {f"{norm}.num_batches_tracked" for norm in norms}
        self.constants = self.state.keys() - self.parameters.keys() - {*self.statistics} - counters
        self.counters = counters & self.state.keys()

    def fits(self, shapes: Mapping[str, tuple[int, ...]]) -> bool:
        """Return whether a state dict with all statistics fits; counters and constants may be missing."""
        expected = _shapes(self.state)
        required = expected.keys() - self.counters - self.constants
        return shapes.items() <= expected.items() and required <= shapes.keys()

    def fits_folded(self, shapes: Mapping[str, tuple[int, ...]]) -> bool:
        """Return whether a state dict has the parameters that remain after folding, with any of the buffers."""
        buffers = self.state.keys() - self.parameters.keys()
        left = {name: shape for name, shape in shapes.items() if name in self.spec.names or name not in buffers}
        return not self.spec.difference(left)

    def ambiguous(self) -> bool:
        """Return whether parameters have the same names and shapes with and without batch norm folded."""
        return bool(self.statistics) and not self.spec.difference(_shapes(self.parameters))


def _trained_state(spec: NetSpec) -> _TrainedState:
    """Return the names and roles of a spec; nothing changes their tensors. Raises as `netspace.archs.build`."""
    return _trained_state_of(spec, archs.resolve(spec.arch))  # which refuses what is not trusted, any longer too


@lru_cache(maxsize=8)
def _trained_state_of(spec: NetSpec, factory: Callable[..., nn.Module]) -> _TrainedState:
    return _TrainedState(spec)


def flat_parameters(state: Mapping[str, Tensor], spec: NetSpec, *, folded: bool = False) -> Float32[Tensor, " P"]:
    """Return the flat parameters of a state dict, folding batch norm if the state dict has it.

    Prefixes of wrappers ('module.', '_orig_mod.', 'model.') are removed if all names fit then; `num_batches_tracked`
    may be missing. `folded`, or the metadata of a `StateDict`, say that batch norm is folded already; without either, a
    state dict without statistics that could be both is refused.

    Raises `NetspaceError` if the state dict is of another architecture, for tensors that cannot be parameters, and for
    constants (a buffer such as a position table) that differ from the architecture's.
    """
    trained = _trained_state(spec)
    folded = folded or (isinstance(state, StateDict) and state.folded)
    state = without_prefix(state, lambda shapes: trained.fits(shapes) or trained.fits_folded(shapes))
    shapes = _shapes(state)
    check_tensors(state, trained.label, {*spec.names, *trained.parameters, *trained.statistics})
    unfolded = not folded and trained.fits(shapes)
    lacking = [name for name in trained.statistics if name not in state]
    if not unfolded and not trained.fits_folded(shapes):
        if lacking and _shapes(trained.parameters).items() <= shapes.items():
            raise NetspaceError(
                f"{trained.label} has all parameters and lacks the statistics of its batch norm ({listed(lacking)}): give the "
                "whole state dict, `model.state_dict()`"
            )
        return flatten(state, spec)  # raises an error that says what differs
    if not unfolded and not folded and lacking and trained.ambiguous():
        raise NetspaceError(
            f"{trained.label} lacks the statistics of its batch norm ({listed(lacking)}), and nothing says that they are "
            "folded into its parameters: give the whole state dict, or say that it is folded (`--folded`, `folded=True`)"
        )
    for name in trained.constants & state.keys():
        if not torch.equal(state[name].to(trained.state[name].dtype), trained.state[name]):
            raise NetspaceError(
                f"{name} of {trained.label} differs from the one that the architecture makes: it is a buffer, and a network "
                "here is its parameters alone; make it a parameter"
            )
    if not unfolded:
        return flatten({name: state[name].detach().to(torch.float32) for name in spec.names}, spec)
    for name in (*trained.parameters, *trained.statistics):
        if not torch.isfinite(state[name].to(torch.float32)).all():
            raise NetspaceError(f"{name} of {spec.arch!r} holds values that are not finite")
    module = _built(spec)
    module.load_state_dict({**trained.state, **state})
    network = fold(module, torch.zeros(2, *spec.input_shape), name=spec.arch, constants=True)
    return flatten({name: value.detach().float() for name, value in network.named_parameters()}, spec)


def module_of(flat: Float32[Tensor, " P"], spec: NetSpec, *, batch_norm: bool = False) -> nn.Module:
    """Return the network with flat parameters as a module in eval mode, on the CPU.

    Batch norm is folded: every layer that had one has a bias. With `batch_norm` the network is of the class that was
    trained, its batch norms the identity but for a bias. Raises as `netspace.archs.skeleton` and
    `netspace.networks.folding.unfold`, and `NetspaceError` if the architecture makes other parameters than the spec's.
    """
    state = unflatten(flat.detach().cpu(), spec)
    network = archs.skeleton(spec.arch, spec.settings, spec.input_shape)
    if problem := spec.difference({name: tuple(value.shape) for name, value in network.named_parameters()}):
        raise NetspaceError(
            f"{spec.arch} with these settings makes other networks than the one that is stored: {problem}"
        )
    if batch_norm:
        return unfold(_built(spec), state, torch.zeros(2, *spec.input_shape), name=spec.arch)
    network.load_state_dict({name: value.clone() for name, value in state.items()}, strict=False)  # all but buffers
    return network.eval()


def fits(state: Mapping[str, Tensor], spec: NetSpec) -> bool:
    """Return whether a state dict is of the spec's architecture by names and shapes, with batch norm or folded."""
    trained = _trained_state(spec)
    shapes = _shapes(without_prefix(state, lambda shapes: trained.fits(shapes) or trained.fits_folded(shapes)))
    return trained.fits(shapes) or trained.fits_folded(shapes)


def without_prefix(
    state: Mapping[str, Tensor], accept: Callable[[dict[str, tuple[int, ...]]], bool]
) -> Mapping[str, Tensor]:
    """Return `state` without the prefixes of wrappers, if `accept` takes the names and shapes then, else `state`.

    The count `n_averaged` that `torch.optim.swa_utils.AveragedModel` adds is removed, too.
    """
    inner = dict(state)
    while not accept(_shapes(inner)):
        inner.pop("n_averaged", None)
        prefix = next((each for each in PREFIXES if inner and all(name.startswith(each) for name in inner)), None)
        if prefix is None:
            return state
        inner = {name.removeprefix(prefix): value for name, value in inner.items()}
    return inner


def _shapes(state: Mapping[str, Tensor]) -> dict[str, tuple[int, ...]]:
    return {name: () if value.is_nested else tuple(value.shape) for name, value in state.items()}


def read_state_dict(path: Path, key: str | None = None) -> StateDict:
    """Read the named tensors of a state-dict file: safetensors, or torch's format without running code.

    A checkpoint may contain one state dict, or several, of which the one called `key` is read.

    Raises `UsageError` for a missing file or key, `NetspaceError` if the file holds no state dict, or several without
    `key`.
    """
    if not path.is_file():
        raise UsageError(f"{absent(path)}: give a state-dict file (.safetensors, .pt or .pth)")
    if path.suffix == ".safetensors":
        if key is not None:
            raise UsageError(f"{path} is a safetensors file, which holds one state dict: leave the key {key!r} out")
        return read_safetensors(path)
    content: Any = read_torch(path)
    if key is None and _is_state(content):
        return StateDict(content)
    entries = content if isinstance(content, Mapping) else {}
    inside = {name: value for name, value in entries.items() if _is_state(value) and value}
    if key is not None:
        if key not in inside:
            raise unknown(f"state dict in {path}", key, inside)
        return StateDict(inside[key])
    if len(inside) == 1:
        return StateDict(*inside.values())
    what = f"{len(inside)} of them ({', '.join(map(str, inside))})" if inside else "something else"
    if any(isinstance(value, Tensor) for value in entries.values()):
        kinds = {type(name).__name__ for name in entries} - {"str"}
        what = f"tensors whose names are of type {', '.join(sorted(kinds))}" if kinds else what
    how = "name one of them by --key, or save" if inside else "save"
    raise NetspaceError(
        f"{path} was expected to hold a state dict (names to tensors), but holds {what}: {how} `model.state_dict()` alone"
    )


def _is_state(content: Any) -> bool:
    return isinstance(content, Mapping) and all(
        isinstance(name, str) and isinstance(value, Tensor) for name, value in content.items()
    )


def read_safetensors(path: Path) -> StateDict:
    """Read the tensors and the metadata of a safetensors file. Raises `NetspaceError` for anything else."""
    return StateDict(*read_tensors(path))


def run_types(state: Mapping[str, Tensor], module: nn.Module | None) -> dict[str, Tensor]:
    """Return a state dict in the types of the module's own state; without a module, in float32."""
    own: dict[str, Tensor] = {} if module is None else module.state_dict()
    dtypes = {id(value): own[name].dtype if name in own else torch.float32 for name, value in state.items()}
    return map_tensors(state, lambda value: value.to(dtypes[id(value)]) if value.is_floating_point() else value)


def run_with_maps(
    module: nn.Module, state: dict[str, Tensor], inputs: Tensor, layers: Sequence[Layer]
) -> tuple[Any, list[Tensor]]:
    """Return what a module with a state dict gives for inputs (B, ...), such as logits (B, C), and the outputs of the layers."""
    maps: list[Tensor] = []

    def record(_module: nn.Module, _inputs: Any, output: Any) -> None:
        maps.append(torch.as_tensor(output[0] if isinstance(output, tuple) else output))  # attention adds its weights

    with ExitStack() as hooks:
        for layer in layers:
            hooks.callback(module.get_submodule(layer_of(layer.name)).register_forward_hook(record).remove)
        outputs = functional_call(module, state, (inputs,))
    return outputs, maps


@torch.no_grad()
def module_logits(
    module: nn.Module, state: dict[str, Tensor], task: Classification, split: str
) -> Float32[Tensor, "N C"]:
    """Return the logits of a module with a state dict for all images of a split."""
    batches, state = task.batches(task.split(split), 512), run_types(state, module)
    return torch.cat([functional_call(module, state, (task.normalise(pixels),)).float() for pixels, _ in batches])


def map_tensors(state: Mapping[str, Tensor], change: Callable[[Tensor], Tensor]) -> dict[str, Tensor]:
    """Apply `change` once to each tensor of `state`; several names of one tensor stay names of one tensor."""
    changed = {key: change(value) for key, value in {id(value): value for value in state.values()}.items()}
    return {name: changed[id(value)] for name, value in state.items()}
