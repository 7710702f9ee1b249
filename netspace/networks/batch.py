"""Run one network, or M networks at once, from their flat parameters.

Axes: M members (networks), P parameters, B inputs, C outputs. Outputs with several axes, such as maps of classes, are
flattened to C values.
"""

from __future__ import annotations

from contextlib import nullcontext
from functools import partial
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.func import functional_call, vmap
from torch.nn.modules.conv import _ConvNd

from netspace.errors import NetspaceError, UsageError
from netspace.networks.prep import unflatten
from netspace.networks.spec import NetSpec
from netspace.networks.stacked_convolutions import batch_last
from netspace.precision import fastest

# channels last: by vmap, images so laid out in memory; batch last: by vmap, convolutions by our own loops
Mode = Literal["auto", "vmap", "channels last", "batch last", "loop"]
TRIAL_MEMBERS, MAX_TRIAL_MEMBERS = 8, 64  # members that calibration times: the former even for large networks
TRIAL_WORK = (
    1 << 31
)  # multiplications in a trial of more: members * parameters * inputs * pixels, if all are convolutions'


def run_one(skeleton: nn.Module, spec: NetSpec, flat: Float[Tensor, " P"], inputs: Tensor) -> Float[Tensor, "B C"]:
    """Return the outputs of one network for inputs (B, ...)."""
    output: Tensor = functional_call(skeleton, unflatten(flat, spec), (inputs,))  # buffers are the skeleton's
    return output.flatten(1)


def run_loop(
    skeleton: nn.Module, spec: NetSpec, flat: Float[Tensor, "M P"], inputs: Tensor, shared: bool
) -> Float[Tensor, "M B C"]:
    """Return the outputs of networks, one after another, for inputs (B, ...) if `shared`, else (M, B, ...)."""
    if inputs.dim() == (4 if shared else 5) and torch.is_autocast_enabled(inputs.device.type):
        inputs = _channels_last(inputs)  # several times faster for convolutions in bf16
    batches = [inputs] * len(flat) if shared else list(inputs)
    return torch.stack([run_one(skeleton, spec, row, batch) for row, batch in zip(flat, batches, strict=True)])


def _channels_last(images: Tensor) -> Tensor:
    dense = images.flatten(0, -4).contiguous(memory_format=torch.channels_last)
    return dense if images.dim() == 4 else dense.unflatten(0, images.shape[:2])


def stacked_channels_last(images: Tensor) -> Tensor:
    """Return images (M, B, C, H, W) in memory as (B, H, W, M, C): channels last for convolutions that `vmap` stacks."""
    return images.permute(1, 3, 4, 0, 2).contiguous().permute(3, 0, 4, 1, 2)


def last_channels(images: Tensor, shared: bool) -> Tensor:
    """Return images (B, C, H, W), or (M, B, C, H, W) unless `shared`, in memory as stacked convolutions are fastest.

    Convolutions of one batch by all networks have M times as many outputs, channels last if the images are: also where C is 1,
    which torch takes for channels last only by its strides.
    """
    if not shared:
        return stacked_channels_last(images)
    channels, rows, columns = images.shape[1:]
    strides = (rows * columns * channels, 1, columns * channels, channels)
    return torch.empty_strided(images.shape, strides, dtype=images.dtype, device=images.device).copy_(images)


def _are_images(inputs: Tensor, shared: bool) -> bool:
    return inputs.dim() == (4 if shared else 5)


def _power_of_two(count: int) -> int:
    """Return the smallest power of two that is not less."""
    return 1 << (count - 1).bit_length()


def bf16_convolutions(module: nn.Module) -> frozenset[str]:
    """Return the names of all convolutions' parameters, to be cast to bf16: `vmap` hides convolutions from autocast.

    From now on layers with weights cast their inputs to the weights' precision (linear ones are left to autocast).
    """
    names = set[str]()
    for name, layer in module.named_modules():
        own = dict(layer.named_parameters(name, recurse=False))
        if own and not isinstance(layer, nn.Linear):
            layer.register_forward_pre_hook(_cast_to_weights)
        if isinstance(layer, _ConvNd):
            names |= own.keys()
    return frozenset(names)


def _cast_to_weights(layer: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
    dtype = next(layer.parameters(recurse=False)).dtype
    return tuple(each.to(dtype) if isinstance(each, Tensor) and each.is_floating_point() else each for each in inputs)


def run_vmap(
    skeleton: nn.Module,
    spec: NetSpec,
    flat: Float[Tensor, "M P"],
    inputs: Tensor,
    shared: bool,
    bf16_names: frozenset[str] = frozenset(),
) -> Float[Tensor, "M B C"]:
    """Return the outputs of stacked networks; inputs as for `run_loop`, parameters in `bf16_names` cast to bf16."""

    def one(row: Tensor, batch: Tensor) -> Tensor:
        weights = {n: w.bfloat16() if n in bf16_names else w for n, w in unflatten(row, spec).items()}
        output: Tensor = functional_call(skeleton, weights, (batch,))
        return output.flatten(1)

    output: Tensor = vmap(one, in_dims=(0, None if shared else 0))(flat, inputs)
    return output


class NetBatch:
    """Runs networks of one spec on batches of inputs.

    Only the `forward` of `skeleton` is used, not its parameters. `max_elements` is the maximum number of members x
    inputs that run at once without gradients, so that memory stays bounded.
    """

    def __init__(
        self,
        skeleton: nn.Module,
        spec: NetSpec,
        mode: Mode = "auto",
        max_elements: int = 1 << 16,
    ) -> None:
        """Raises `NetspaceError` if the skeleton is not of the spec."""
        problem = spec.difference({name: tuple(value.shape) for name, value in skeleton.named_parameters()})
        if problem:
            raise NetspaceError(f"the skeleton of {spec.arch!r} is not of its spec: {problem}")
        self.skeleton = skeleton.eval().requires_grad_(False)
        self.spec = spec
        self.mode: Mode = mode
        self.max_elements = max_elements
        self._chosen: dict[tuple[object, ...], str] = {}
        self._convolutions: frozenset[str] | None = None

    def to(self, device: torch.device | str) -> None:
        """Move the skeleton, whose buffers the networks use, to a device."""
        self.skeleton.to(device)

    def __call__(self, flat: Float[Tensor, "M P"], inputs: Tensor, *, shared: bool = True) -> Float[Tensor, "M B C"]:
        """Return the outputs of networks for inputs (B, ...) of all or, with `shared=False`, (M, B, ...) of each.

        Raises `NetspaceError` if there are not as many batches of inputs as networks, and `UsageError` for inputs of another shape
        than the spec's that the networks cannot take.
        """
        if not shared and len(inputs) != len(flat):
            raise NetspaceError(f"{len(flat)} networks were given {len(inputs)} batches of inputs: one for each")
        if not len(flat):  # one network of zeros says what shape outputs have
            one = inputs if shared else inputs.new_zeros(1, *inputs.shape[1:])
            return self._run(flat.new_zeros(1, flat.shape[1]), one, shared)[:0]
        if torch.is_grad_enabled() and (flat.requires_grad or inputs.requires_grad):
            return self._run(flat, inputs, shared)
        batch = inputs.shape[0 if shared else 1]
        at_once = max(self.max_elements // max(batch, 1), 1)
        if len(flat) <= at_once:
            return self._run(flat, inputs, shared)
        pieces = [
            self._run(rows, inputs if shared else inputs[start : start + at_once], shared)
            for start, rows in zip(range(0, len(flat), at_once), flat.split(at_once), strict=True)
        ]
        return torch.cat(pieces)

    def _run(self, flat: Tensor, inputs: Tensor, shared: bool) -> Tensor:
        try:
            way = self._pick(flat, inputs, shared)
            if way == "loop":
                return run_loop(self.skeleton, self.spec, flat, inputs, shared)
            if way == "channels last" and _are_images(inputs, shared):
                inputs = last_channels(inputs, shared)
            with batch_last() if way == "batch last" else nullcontext():
                return run_vmap(self.skeleton, self.spec, flat, inputs, shared, self._bf16_names(inputs.device))
        except (RuntimeError, ValueError) as error:
            expected, given = tuple(self.spec.input_shape), tuple(inputs.shape)[1 if shared else 2 :]
            if given == expected or isinstance(error, torch.OutOfMemoryError):
                raise
            raise UsageError(
                f"inputs of shape {given} were given, which networks of {self.spec.arch!r} cannot take: {expected} was expected"
            ) from error

    def _bf16_names(self, device: torch.device) -> frozenset[str]:
        """Return which parameters stacked networks get in bf16: convolutions' under autocast; on CPUs, none."""
        if device.type == "cpu" or not torch.is_autocast_enabled(device.type):
            return frozenset()
        if self._convolutions is None:
            self._convolutions = bf16_convolutions(self.skeleton)
        return self._convolutions

    def _stackable(self, flat: Tensor, inputs: Tensor, shared: bool) -> str:
        """Return 'vmap' if it can run these networks, else 'loop' (for recurrent layers, say); tried once."""
        if ("stackable",) not in self._chosen:
            images = inputs[:1] if shared else inputs[:2, :1]
            try:
                with torch.no_grad():
                    run_vmap(self.skeleton, self.spec, flat.detach()[:2], images.detach(), shared)
                self._chosen["stackable",] = "vmap"
            except Exception:  # whatever a layer raises
                self._chosen["stackable",] = "loop"
        return self._chosen["stackable",]

    def _trial_members(self, inputs: Tensor, batch: int) -> int:
        """Return how many members are timed: as many as are seconds of work, since more of them can prefer another way."""
        pixels = inputs.shape[-2:].numel() if inputs.dim() >= 4 else 1
        within = TRIAL_WORK // max(self.spec.num_parameters * batch * pixels, 1)
        return min(max(1 << max(within.bit_length() - 1, 0), TRIAL_MEMBERS), MAX_TRIAL_MEMBERS)

    def _pick(self, flat: Tensor, inputs: Tensor, shared: bool) -> str:
        if self.mode != "auto":
            return self.mode
        if len(flat) == 1:
            return "loop"
        if flat.device.type != "cpu":
            return self._stackable(flat, inputs, shared)
        grads = tuple(torch.is_grad_enabled() and each.requires_grad for each in (flat, inputs))
        batch = _power_of_two(inputs.shape[0 if shared else 1])  # so that few sizes are timed
        members = min(_power_of_two(len(flat)), self._trial_members(inputs, batch))
        kind = flat.device.type
        autocast = str(torch.get_autocast_dtype(kind)) if torch.is_autocast_enabled(kind) else ""
        key = (members, batch, shared, *grads, str(inputs.dtype), autocast)
        if key not in self._chosen:
            detached = flat.detach()[:members]
            images = inputs.detach() if shared else inputs.detach()[:members]

            def trial(way: str) -> None:
                rows, given = (
                    each.clone().requires_grad_(grad) for each, grad in zip((detached, images), grads, strict=True)
                )
                with torch.set_grad_enabled(any(grads)), batch_last() if way == "batch last" else nullcontext():
                    laid_out = last_channels(given, shared) if way == "channels last" else given
                    output = (run_loop if way == "loop" else run_vmap)(self.skeleton, self.spec, rows, laid_out, shared)
                    if any(grads):
                        output.square().sum().backward()

            names = ["loop", "vmap"]
            if _are_images(inputs, shared):
                convolutional = any(len(shape) == 4 for shape in self.spec.shapes) and not autocast
                names += ["channels last", "batch last"] if convolutional else ["channels last"]
            ways = {name: partial(trial, name) for name in names}
            self._chosen[key] = fastest(f"netbatch 7 {self.spec.to_json()} {key}", ways, repeats=2)
        return self._chosen[key]
