"""State dicts, from modules and files, as flat parameters; and any network run with a state dict that is not its own."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from netspace import archs
from netspace.errors import NetspaceError, UsageError, unknown
from netspace.io import read_tensors, read_torch
from netspace.networks.folding import fold
from netspace.networks.graph import batch_norms, listed
from netspace.networks.kernels import Layer, layer_of
from netspace.networks.prep import flatten, is_integer, parameter_problem
from netspace.networks.spec import NetSpec
from netspace.tasks import Classification

FILES = (".safetensors", ".pt", ".pth")  # what a state dict's file may be called


FACTORY = re.compile(r"[\w.]+:\w+")  # how an architecture outside netspace is named


PREFIXES = ("module.", "_orig_mod.", "model.")  # what wrappers put before every name


WEIGHTS = ("weight", "bias")  # what parameters are called where no architecture says which tensors are parameters


class StateDict(dict[str, Tensor]):
    """A state dict, with what its file says of it."""

    def __init__(self, tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None) -> None:
        super().__init__(tensors)
        self.metadata = dict(metadata or {})

    @property
    def folded(self) -> bool:
        """Whether the file says that batch norm is folded, as networks are that netspace writes."""
        if "folded" in self.metadata:
            return self.metadata["folded"] == "true"
        return {"arch", "settings"} <= self.metadata.keys()  # as files were written once


def folded_metadata(spec: NetSpec, *, folded: bool = True) -> dict[str, str]:
    """What a file says of the network that it holds: what it is, and whether its batch norm is folded."""
    return {
        "arch": spec.arch,
        "settings": json.dumps(spec.settings),
        "input_shape": json.dumps(spec.input_shape),
        "folded": "true" if folded else "false",
    }


def metadata_spec(metadata: Mapping[str, str]) -> NetSpec | None:
    """The spec of the network that a file's metadata describe; None where they describe none, as those of other programs.

    Raises `UsageError` for an architecture outside netspace that nobody trusted.
    """
    try:
        arch, settings = metadata["arch"], json.loads(metadata["settings"])
        if "input_shape" in metadata:
            shape = tuple(int(side) for side in json.loads(metadata["input_shape"]))
        else:  # as files were written once
            shape = settings["channels"], settings["image_size"], settings["image_size"]
    except (KeyError, ValueError, TypeError, RecursionError):
        return None
    outside = FACTORY.fullmatch(arch) is not None
    if not isinstance(settings, dict) or not (outside or arch in archs.names()):
        return None
    try:
        return NetSpec.from_module(archs.skeleton(arch, settings, shape), arch, settings, shape)
    except (NetspaceError, TypeError, ValueError):  # what others call by the name of an architecture of ours
        if outside:
            raise
        return None


def check_tensors(state: Mapping[str, Tensor], origin: str, parameters: Collection[str] | None = None) -> None:
    """Refuses tensors that cannot be parameters: complex, integer, boolean, quantised, sparse or without values.

    `origin` is what the sentence calls the state dict. `parameters` names those of its tensors that are parameters; the
    others, buffers, may hold integers. Where it is None, tensors of int8 and tensors called 'weight' or 'bias' are
    parameters. Raises `NetspaceError` naming the first tensor at fault.
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


class _Trained:
    """The state of an architecture as it is trained, before batch norm is folded: which names are what."""

    def __init__(self, spec: NetSpec) -> None:
        self.spec, self.label = spec, f"this state dict of {spec.arch!r}"
        with torch.random.fork_rng(devices=()):
            self.module = archs.build(spec.arch, **spec.settings)
        self.state = self.module.state_dict()
        self.parameters = dict(self.module.named_parameters())
        norms = batch_norms(self.module)
        statistics = (f"{norm}.running_{each}" for norm in norms for each in ("mean", "var"))
        self.statistics = [name for name in statistics if name in self.state]
        counters = {f"{norm}.num_batches_tracked" for norm in norms}
        self.constants = self.state.keys() - self.parameters.keys() - {*self.statistics} - counters
        self.counters = counters & self.state.keys()

    def fits(self, shapes: Mapping[str, tuple[int, ...]]) -> bool:
        """Whether a state dict with all statistics is of this architecture; counters and constants may be missing."""
        wanted = _shapes(self.state)
        optional = self.counters | self.constants
        return all(wanted.get(name) == shape for name, shape in shapes.items()) and all(
            name in shapes for name in wanted if name not in optional
        )

    def fits_folded(self, shapes: Mapping[str, tuple[int, ...]]) -> bool:
        """Whether a state dict has the parameters that remain after folding, with any of the buffers."""
        buffers = self.state.keys() - self.parameters.keys()
        left = {name: shape for name, shape in shapes.items() if name in self.spec.names or name not in buffers}
        return not self.spec.difference(left)

    def ambiguous(self) -> bool:
        """Whether folding leaves the names and shapes of the parameters as they are, although there is something to fold."""
        return bool(self.statistics) and not self.spec.difference(_shapes(self.parameters))


def flat_parameters(state: Mapping[str, Tensor], spec: NetSpec, *, folded: bool = False) -> Tensor:
    """Flat parameters (P,) float32 of a state dict: of the folded network as it is, of one with batch norm after folding.

    Prefixes of wrappers ('module.', '_orig_mod.', 'model.') are taken off where all names fit then; `num_batches_tracked`
    may be missing. `folded` says that batch norm is folded already, as the metadata of a `StateDict` may; without either,
    a state dict that lacks statistics and could be both is refused.

    Raises `NetspaceError` for a state dict that is neither, for tensors that cannot be parameters, and for constants (a
    buffer such as a position table) other than the architecture's own.
    """
    trained = _Trained(spec)
    folded = folded or (isinstance(state, StateDict) and state.folded)
    state = without_prefix(state, lambda shapes: trained.fits(shapes) or trained.fits_folded(shapes))
    shapes = _shapes(state)
    check_tensors(state, trained.label, {*spec.names, *trained.parameters, *trained.statistics})
    whole = not folded and trained.fits(shapes)
    lacking = [name for name in trained.statistics if name not in state]
    if not whole and not trained.fits_folded(shapes):
        if lacking and all(shapes.get(name) == tuple(value.shape) for name, value in trained.parameters.items()):
            raise NetspaceError(
                f"{trained.label} has all parameters and lacks the statistics of its batch norm ({listed(lacking)}): give the "
                "whole state dict, `model.state_dict()`"
            )
        return flatten(state, spec)  # which says what is wrong
    if not whole and not folded and lacking and trained.ambiguous():
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
    if not whole:
        return flatten({name: state[name].detach().to(torch.float32) for name in spec.names}, spec)
    for name in (*trained.parameters, *trained.statistics):
        if not torch.isfinite(state[name].to(torch.float32)).all():
            raise NetspaceError(f"{name} of {spec.arch!r} holds values that are not finite")
    trained.module.load_state_dict({**trained.state, **state})
    done = fold(trained.module, torch.zeros(2, *spec.input_shape), name=spec.arch, constants=True)
    return flatten({name: value.detach().float() for name, value in done.named_parameters()}, spec)


def fits(state: Mapping[str, Tensor], spec: NetSpec) -> bool:
    """Whether a state dict is of the spec's architecture by names and shapes, with batch norm or folded."""
    trained = _Trained(spec)
    found = _shapes(without_prefix(state, lambda shapes: trained.fits(shapes) or trained.fits_folded(shapes)))
    return trained.fits(found) or trained.fits_folded(found)


def without_prefix(
    state: Mapping[str, Tensor], accept: Callable[[dict[str, tuple[int, ...]]], bool]
) -> Mapping[str, Tensor]:
    """`state` without the prefixes that wrappers put before every name, if `accept` takes the names and shapes then.

    The count of averages that `torch.optim.swa_utils.AveragedModel` keeps beside the network is left out too.
    """
    found = dict(state)
    while not accept(_shapes(found)):
        inner = {name: value for name, value in found.items() if name != "n_averaged"}
        prefix = next((each for each in PREFIXES if inner and all(name.startswith(each) for name in inner)), None)
        if prefix is None:
            return state
        found = {name.removeprefix(prefix): value for name, value in inner.items()}
    return found


def _shapes(state: Mapping[str, Tensor]) -> dict[str, tuple[int, ...]]:
    return {
        name: () if value.is_nested else tuple(value.shape) for name, value in state.items()
    }  # nested ones have none


def read_state_dict(path: Path, key: str | None = None) -> StateDict:
    """Named tensors of a state-dict file: safetensors, or torch's format read without running code.

    Of a checkpoint the state dict in it is taken, where there is one alone, or the one called `key`. Raises `UsageError`
    or `NetspaceError`.
    """
    if not path.is_file():
        raise UsageError(f"{path} does not exist: give a state-dict file (.safetensors, .pt or .pth)")
    if path.suffix == ".safetensors":
        if key is not None:
            raise UsageError(f"{path} is a safetensors file, which holds one state dict: leave the key {key!r} out")
        return read_safetensors(path)
    found: Any = read_torch(path)
    if key is None and _is_state(found):
        return StateDict(found)
    inside = (
        {name: value for name, value in found.items() if _is_state(value) and value}
        if isinstance(found, Mapping)
        else {}
    )
    if key is not None:
        if key not in inside:
            raise unknown(f"state dict in {path}", key, inside)
        return StateDict(inside[key])
    if len(inside) == 1:
        return StateDict(*inside.values())
    what = f"{len(inside)} of them ({', '.join(map(str, inside))})" if inside else "something else"
    if isinstance(found, Mapping) and any(isinstance(value, Tensor) for value in found.values()):
        kinds = {type(name).__name__ for name in found} - {"str"}
        what = f"tensors whose names are of type {', '.join(sorted(kinds))}" if kinds else what
    how = "name one of them by --key, or save" if inside else "save"
    raise NetspaceError(
        f"{path} was expected to hold a state dict (names to tensors), but holds {what}: {how} `model.state_dict()` alone"
    )


def _is_state(found: Any) -> bool:
    return isinstance(found, Mapping) and all(
        isinstance(name, str) and isinstance(value, Tensor) for name, value in found.items()
    )


def read_safetensors(path: Path) -> StateDict:
    """The tensors and the metadata of a safetensors file. Raises `NetspaceError` for anything else."""
    return StateDict(*read_tensors(path))


def run_types(state: Mapping[str, Tensor], module: nn.Module | None) -> dict[str, Tensor]:
    """A state dict in the types that the module computes in, whatever its file holds; without a module, float32."""
    own: dict[str, Tensor] = {} if module is None else module.state_dict()
    kinds = {id(value): own[name].dtype if name in own else torch.float32 for name, value in state.items()}
    return map_tensors(state, lambda value: value.to(kinds[id(value)]) if value.is_floating_point() else value)


def run_with_maps(
    module: nn.Module, state: dict[str, Tensor], shown: Tensor, layers: Sequence[Layer]
) -> tuple[Tensor, list[Tensor]]:
    """Logits (B, C) of a module with a state, and the outputs of the layers."""
    maps: list[Tensor] = []
    with ExitStack() as hooks:
        for layer in layers:
            held = module.get_submodule(layer_of(layer.name))
            hooks.callback(
                held.register_forward_hook(lambda _module, _inputs, output: maps.append(_first(output))).remove
            )
        logits: Tensor = functional_call(module, state, (shown,))
    return logits, maps


def _first(output: Any) -> Tensor:
    """A layer's output; attention gives its weights beside it."""
    return torch.as_tensor(output[0] if isinstance(output, tuple) else output)


@torch.no_grad()
def module_logits(module: nn.Module, state: dict[str, Tensor], task: Classification, split: str) -> Tensor:
    """Logits (N, C) of a network for all images of a split."""
    batches, state = task.batches(task.split(split), 512), run_types(state, module)
    return torch.cat([functional_call(module, state, (task.normalise(pixels),)).float() for pixels, _ in batches])


def map_tensors(state: Mapping[str, Tensor], change: Callable[[Tensor], Tensor]) -> dict[str, Tensor]:
    """`state` with `change` applied to each tensor once: names of one tensor are names of one tensor afterwards too."""
    changed = {id(value): value for value in state.values()}
    changed = {key: change(value) for key, value in changed.items()}
    return {name: changed[id(value)] for name, value in state.items()}
