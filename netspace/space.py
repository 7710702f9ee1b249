"""`Space`: a trained latent space of networks, loaded from its run folder and ready to use.

Axes: M networks, P parameters, H W of a PRep, E latent size.

    space = Space.load("runs/quickstart")
    z = space.encode(network)          # a module, a state dict, or a PRep -> (E,)
    network = space.decode(z)          # a ready-to-use torch module
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from netspace import archs
from netspace.config import read_back
from netspace.errors import NetspaceError, UsageError
from netspace.folding import fold
from netspace.functional import NetBatch
from netspace.models.autoencoder import AutoEncoder, build_autoencoder
from netspace.prep import flatten, pack, unflatten, unpack
from netspace.runtime import is_run
from netspace.spec import NetSpec
from netspace.training.checkpoints import load_best
from netspace.training.recipe import SpaceRecipe
from netspace.training.steps import half
from netspace.training.validation import through


class Space:
    """Encoder, decoder and the spec of the networks they speak of."""

    def __init__(
        self, model: AutoEncoder, recipe: SpaceRecipe, arch: str, nets: NetBatch, size: tuple[int, int]
    ) -> None:
        self.model = model.eval().requires_grad_(False)
        self.recipe, self.arch, self.nets, self.size = recipe, arch, nets, size
        self.run: Path | None = None

    @classmethod
    def load(cls, run: str | Path, device: str | torch.device = "cpu") -> Space:
        """The space that a run folder holds. Raises `NetspaceError` if it holds none, or is broken."""
        run = Path(run)
        if not is_run(run):
            raise NetspaceError(f"{run} is not a run folder (config.yaml and provenance.json were expected in it)")
        recipe = read_back(SpaceRecipe, run / "config.yaml")
        try:
            told = json.loads((run / "space.json").read_text())
            ((arch, entry),) = told["archs"].items()
            spec = NetSpec.from_json(json.dumps(entry["spec"]))
            size = (int(entry["prep"][0]), int(entry["prep"][1]))
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise NetspaceError(f"{run} does not say which networks its space holds (space.json): {error}") from None
        weights = load_best(run)
        nets = NetBatch(archs.skeleton(spec.arch, spec.settings, spec.input_shape).to(device), spec)
        model = build_autoencoder(recipe.latent, recipe.encoder, recipe.decoder, nets, None, None, size)
        try:
            model.load_state_dict(weights)
        except RuntimeError as error:
            raise NetspaceError(
                f"the weights in {run} do not fit its settings: {str(error).splitlines()[-1].strip()}"
            ) from None
        space = cls(model.to(device), recipe, arch, nets, size)
        space.run = run
        return space

    @property
    def spec(self) -> NetSpec:
        """The spec of the networks in this space."""
        return self.nets.spec

    @property
    def latent(self) -> int:
        """E: the size of a latent."""
        return self.recipe.latent

    @property
    def device(self) -> torch.device:
        """Where the space computes."""
        return self.model.spread.device

    def encode(self, network: nn.Module | Mapping[str, Tensor] | Tensor) -> Tensor:
        """The latent (E,) of one network: a module, its state dict, or its PRep (H, W)."""
        if isinstance(network, Tensor):
            return self.encode_preps(network[None])[0]
        state = network.state_dict() if isinstance(network, nn.Module) else network
        return self.encode_preps(pack(self.parameters(state), self.size)[None])[0]

    def encode_preps(self, preps: Tensor) -> Tensor:
        """Latents (M, E) of PReps (M, H, W)."""
        if preps.shape[1:] != torch.Size(self.size):
            raise UsageError(f"PReps of {tuple(preps.shape[1:])} were given; this space takes {self.size}")
        if not torch.isfinite(preps).all():
            raise NetspaceError("the network has weights that are not finite: it cannot be encoded")
        with torch.no_grad(), half(self.recipe.precision, self.device):
            latents: Tensor = torch.cat([self.model.encoder(piece) for piece in preps.to(self.device).split(64)])
        return latents.float()

    def decode(self, latent: Tensor) -> nn.Module:
        """A ready-to-use network, in eval mode, from a latent (E,).

        Its state dict loads into the plain architecture too: batch norm is folded, every layer has a bias.
        """
        flat = unpack(self.decode_preps(latent.reshape(1, -1)), self.spec.num_parameters)[0]
        network = archs.skeleton(self.spec.arch, self.spec.settings, self.spec.input_shape)
        network.load_state_dict({name: value.clone() for name, value in unflatten(flat.cpu(), self.spec).items()})
        return network.to(self.device).eval()

    def decode_preps(self, latents: Tensor) -> Tensor:
        """PReps (M, H, W) of latents (M, E). Raises `UsageError` for latents of another size."""
        if latents.shape[-1] != self.latent:
            raise UsageError(f"a latent of {latents.shape[-1]} values was given; this space's have {self.latent}")
        with torch.no_grad(), half(self.recipe.precision, self.device):
            pieces = [self.model.decoder(piece) for piece in latents.to(self.device).split(64)]
        return torch.cat(pieces).float()

    def decode_flat(self, latents: Tensor) -> Tensor:
        """Flat parameters (M, P) of latents (M, E)."""
        return unpack(self.decode_preps(latents), self.spec.num_parameters)

    def through(self, preps: Tensor) -> tuple[Tensor, Tensor]:
        """Latents (M, E) of PReps (M, H, W), and the PReps (M, H, W) decoded from them."""
        with half(self.recipe.precision, self.device):
            return through(self.model.both, preps.to(self.device))

    def parameters(self, state: Mapping[str, Tensor]) -> Tensor:
        """Flat parameters (P,) of a state dict of this space's architecture, with batch norm or folded."""
        return flat_parameters(state, self.spec)


def flat_parameters(state: Mapping[str, Tensor], spec: NetSpec) -> Tensor:
    """Flat parameters (P,) of a state dict: of the folded network as it is, of one with batch norm after folding.

    Raises `NetspaceError` if it is neither; the sentence speaks of the folded network.
    """
    shapes = {name: tuple(value.shape) for name, value in state.items()}
    if spec.difference(shapes):
        whole = archs.build(spec.arch, **spec.settings)
        wanted = {name: tuple(value.shape) for name, value in whole.state_dict().items()}
        if shapes == wanted:
            for name, value in state.items():
                if not torch.isfinite(value).all():
                    raise NetspaceError(f"{name} of {spec.arch!r} holds values that are not finite")
            whole.load_state_dict(dict(state))
            state = dict(fold(whole, torch.randn(2, *spec.input_shape), name=spec.arch).named_parameters())
    return flatten({name: value.detach().float() for name, value in state.items()}, spec)


def read_state_dict(path: Path) -> dict[str, Tensor]:
    """Named tensors of a state-dict file: safetensors, or torch's format read without running code."""
    from netspace.runtime import read_torch
    from netspace.training.checkpoints import read_safetensors

    if not path.is_file():
        raise UsageError(f"{path} does not exist: give a state-dict file (.safetensors, .pt or .pth)")
    found: Any = read_safetensors(path) if path.suffix == ".safetensors" else read_torch(path)
    if not isinstance(found, Mapping) or not all(isinstance(value, Tensor) for value in found.values()):
        raise NetspaceError(f"{path} was expected to hold a state dict (names to tensors), but holds something else")
    return dict(found)
