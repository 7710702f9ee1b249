"""`Space`: a trained latent space of networks, loaded from its run folder and ready to use.

Axes: M networks, P parameters, H W of a PRep, E latent size.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property, partial
from itertools import islice
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor, nn

from netspace import undeclared
from netspace.config import validate
from netspace.errors import NetspaceError, UsageError
from netspace.models.autoencoder import AutoEncoder
from netspace.models.decoders import CoordinateDecoder
from netspace.networks.batch import NetBatch
from netspace.networks.family import ArchClass, Family, Networks
from netspace.networks.graph import batch_norms
from netspace.networks.prep import pack, unpack
from netspace.networks.spec import NetSpec
from netspace.networks.state_dict import fits, flat_parameters, module_of, read_state_dict
from netspace.precision import choose
from netspace.pretrained import StoredSpace
from netspace.training import descent
from netspace.training.batches import autocast
from netspace.training.recipe import SpaceRecipe
from netspace.training.validation import MEMBERS, decode
from netspace.zoo import Member

TRIAL = 16  # latents that are decoded to choose between precisions
Network = nn.Module | Mapping[str, Tensor] | Tensor | str | Path | Member  # one network, in any form


class Space(StoredSpace):
    """Encoder, decoder, ClassId head and the specs of the networks they speak of.

    >>> space = Space.load(run)  # the folder of a run
    >>> latent = torch.zeros(space.latent)
    >>> network = space.decode(latent)  # a torch module, in eval mode
    >>> network(torch.zeros(1, 1, 8, 8)).shape
    torch.Size([1, 10])
    >>> space.encode(network).shape == latent.shape
    True
    """

    def __init__(self, model: AutoEncoder, recipe: SpaceRecipe, family: Family) -> None:
        self.model = model.eval().requires_grad_(False)
        self.recipe, self.family = recipe, family
        self.run: Path | None = None
        self.evaluation = None

    def __repr__(self) -> str:
        networks = ", ".join(f"{each.id} ({each.parameters:,} parameters)" for each in self.family)
        weights = sum(value.numel() for value in self.model.parameters())
        origin = "" if self.run is None else f", of {str(self.run)!r}"
        return (
            f"Space({networks} <-> {self.latent} numbers; encoder {self.recipe.encoder.kind}, decoder "
            f"{self.recipe.decoder.kind}, {weights:,} weights on {self.device}{origin})"
        )

    def to(self, device: str | torch.device) -> Self:
        """Move the space to a device, in place, and return it."""
        self.model.to(device)
        for each in self.family:
            each.nets.to(device)
        self.__dict__.pop("precision", None)  # which is chosen for a device
        return self

    @cached_property
    def precision(self) -> str:
        """Of encoder and decoder: as the recipe says, or for 'auto' the one in which this device decodes the fastest."""
        recipe, latents = self.recipe, torch.zeros(TRIAL, self.latent, device=self.device)
        class_ids = torch.zeros(TRIAL, dtype=torch.int64, device=self.device)

        def trial(precision: dict[str, str]) -> None:
            with torch.no_grad(), autocast(precision["precision"], self.device):
                self.model.decoder(latents, class_ids)

        subject = f"decode {recipe.latent} {recipe.decoder} {self.family.size}"
        return choose(subject, {"precision": recipe.precision}, trial, self.device)["precision"]

    @property
    def multi(self) -> bool:
        """Whether latents stand for networks of more than one architecture."""
        return len(self.family) > 1

    @property
    def spec(self) -> NetSpec:
        """The spec of the networks, where all are of one architecture. Raises `UsageError` where they are not."""
        return self.arch_class().spec

    @property
    def latent(self) -> int:
        """E: the size of a latent."""
        return self.recipe.latent

    @property
    def device(self) -> torch.device:
        """Where the space computes."""
        return self.model.spread.device

    def class_id(self, arch: str | None = None) -> int:
        """The ClassId of an architecture, None for the only one. Raises `UsageError` if there is no such, or no only."""
        if arch is None and self.multi:
            raise UsageError(f"this space holds networks of {self.family.names}: name one of them (--arch)")
        if arch is not None and not self.multi and arch != self.family[0].id:
            raise UsageError(
                f"networks of {arch} were asked for, but this space holds {self.family[0].id} alone: it has no ClassId head "
                "that tells architectures apart"
            )
        return 0 if arch is None else self.family.class_id(arch)

    def arch_class(self, arch: str | None = None) -> ArchClass:
        """An architecture of this space; as `class_id`."""
        return self.family[self.class_id(arch)]

    def encode(
        self, network: Network | Tensor | Iterable[Network], arch: str | None = None, *, folded: bool = False
    ) -> Tensor:
        """The latent (E,) of one network, or the latents (M, E) of several, without gradients.

        One network is a module, its state dict, the path of its state-dict file, a member of a zoo, or a PRep (H, W); several
        are a list or another iterable of these, or PReps (M, H, W) of one architecture.

        The architecture of a state dict is found by its names and shapes; a PRep's has to be named where there are several.
        `folded` says that batch norm is folded into a state dict's parameters, where names and shapes do not. Raises as
        `encode_preps` and `recognise`, and as `netspace.networks.state_dict.read_state_dict` for a path.

        >>> space = Space.load(run)
        >>> space.encode([space.decode(torch.zeros(space.latent))] * 3).shape  # three modules
        torch.Size([3, 64])
        """
        if isinstance(network, Tensor) and network.ndim == 3:
            return self.encode_preps(network, arch)
        if isinstance(network, Tensor | nn.Module | Mapping | str | Path | Member):
            return self._encode_several([network], arch, folded)[0]
        pieces, networks = [torch.zeros(0, self.latent, device=self.device)], iter(network)
        while piece := list(islice(networks, MEMBERS)):
            pieces.append(self._encode_several(piece, arch, folded))
        return torch.cat(pieces)

    def _encode_several(self, networks: Sequence[Network], arch: str | None, folded: bool) -> Tensor:
        preps = [self._prep(each, arch, folded) for each in networks]
        for class_id, prep in preps:
            self._check_size(prep.shape, class_id)
        ids = torch.tensor([class_id for class_id, _ in preps])
        latents = torch.empty(len(preps), self.latent, device=self.device)
        for class_id in ids.unique().tolist():
            rows = (ids == class_id).nonzero()[:, 0]
            stack = torch.stack([preps[row][1].to(self.device) for row in rows.tolist()])
            latents[rows.to(self.device)] = self.encode_preps(stack, self.family[class_id].id)
        return latents

    def _prep(self, network: Network, arch: str | None, folded: bool) -> tuple[int, Tensor]:
        """Return the ClassId of a network and its PRep (H, W)."""
        if isinstance(network, Tensor):
            return self.class_id(arch), network
        if isinstance(network, Member):
            of = next((each for each in self.family if arch in (None, each.id) and each.spec == network.spec), None)
            if of is None:
                raise UsageError(
                    f"{network} ({network.spec.arch}) is of another architecture than this space's ({self.family.names}): its "
                    f"settings are {network.spec.settings}, the space's {[each.spec.settings for each in self.family]}"
                )
            return self.family.class_id(of.id), pack(network.flat(), of.size)
        if isinstance(network, nn.Module):
            folded = folded or not batch_norms(network)
            state: Mapping[str, Tensor] = network.state_dict()
        else:
            state = network if isinstance(network, Mapping) else read_state_dict(Path(network))
        found = self.recognise(state) if arch is None else self.arch_class(arch)
        return self.family.class_id(found.id), pack(flat_parameters(state, found.spec, folded=folded), found.size)

    def encode_preps(self, preps: Tensor, arch: str | None = None) -> Tensor:
        """Latents (M, E) of PReps (M, H, W) of one architecture.

        Raises `UsageError` if the architecture is unknown or was never shown, or for PReps of another size, and
        `NetspaceError` for weights that are not finite.
        """
        class_id = self.class_id(arch)
        if not self.family[class_id].trained:
            raise UsageError(
                f"a network of {self.family[class_id].id} was to be encoded, but this space was never shown one: it gives such "
                "networks (`sample --arch`, `interpolate`), and takes those of "
                + ", ".join(each.id for each in self.family if each.trained)
            )
        self._check_size(preps.shape[1:], class_id)
        if not torch.isfinite(preps).all():
            raise NetspaceError("the network has weights that are not finite: it cannot be encoded")
        preps = preps.to(self.device).float()
        with autocast(self.precision, self.device):
            return descent.read_latents(self.model, self.recipe, self.family, preps, class_id)

    def _check_size(self, shape: torch.Size, class_id: int) -> None:
        if shape != torch.Size(size := self.family[class_id].size):
            raise UsageError(f"PReps of {tuple(shape)} were given; {self.family[class_id].id} has {size}")

    def class_ids(self, latents: Tensor) -> Tensor:
        """The ClassIds (M,) that latents (M, E) stand for, by the head's largest logit (NetSpace, Suppl. I)."""
        with torch.no_grad(), autocast(self.precision, self.device):
            return self.model.class_ids(self._fitting(latents)).cpu()

    def select(self, arch: str | None, width: float | None = None, depth: int | None = None) -> Space:
        """Return the space that decodes networks of an architecture: itself for one of its own, else as `resized`."""
        if width is None and depth is None:
            known = arch is None or any(each.id == arch for each in self.family)
            if known or not isinstance(self.model.decoder, CoordinateDecoder):
                return self
        return self.resized(self.arch_class().id if arch is None else arch, width, depth)

    def resized(self, arch: str, width: float | None = None, depth: int | None = None) -> Space:
        """Return this space with its latents decoded as networks of another architecture, which nobody declared.

        `arch` is one of this space's, whose other settings are kept, or any that `netspace.archs.build` knows; `width` and
        `depth` are settings of its factory. It takes a coordinate decoder with `start: emitted`. An architecture that was not
        trained, sizes outside the trained range, and any of a space that was trained without `sizes`, are a `NetspaceWarning`.
        Raises `UsageError` for another decoder, and as `netspace.archs.build`.
        """
        model, family = undeclared.resized(self.model, self.recipe, self.family, arch, width, depth)
        return Space(model, self.recipe, family)

    def factor(self, arch: ArchClass) -> float:
        """Return how far from the smallest to the largest architecture one lies, by its parameters (NetSpace, Eq. 12).

        For an architecture that is none of the family: between its neighbours' factors, linearly in log(parameters).
        """
        sizes, factors = zip(
            *((each.parameters, self.family.factor(row)) for row, each in enumerate(self.family)), strict=True
        )
        return float(np.interp(np.log(arch.parameters), np.log(sizes), factors))

    def decode(
        self,
        latent: Tensor | np.ndarray | str | Path | Sequence[Tensor | np.ndarray | str | Path],
        arch: str | None = None,
        *,
        width: float | None = None,
        depth: int | None = None,
        batch_norm: bool = False,
    ) -> Any:
        """A ready-to-use network, in eval mode, from a latent (E,): of the architecture it stands for, or of `arch`.

        A latent is a tensor, an array, or the path of a file such as `netspace encode` writes. Latents (M, E), or a list of latents,
        give a list of M networks.

        An `arch` that is none of this space's, or one at another `width` or `depth`, is decoded as `resized` says.
        Batch norm is folded: every layer that had one has a bias. With `batch_norm` the network is of the class that was
        trained, its batch norms the identity but for a bias. Raises `UsageError` for a latent that requires a gradient,
        which a module's parameters do not pass on (`decode_flat` does), and for one of another shape.
        """
        one = isinstance(latent, str | Path) or getattr(latent, "ndim", 2) < 2
        given: Any = [latent] if one else latent
        latents = [self._one_latent(each) for each in given]
        if torch.is_grad_enabled() and any(each.requires_grad for each in latents):
            raise UsageError(
                "a latent that requires a gradient was to be decoded to a module, whose parameters would cut the gradient: use "
                "Space.functional, or Space.decode_flat with torch.func.functional_call, or decode latent.detach()"
            )
        chosen = self.select(arch, width, depth)
        if not latents:
            return []
        networks = chosen.decode_all(torch.stack(latents), arch if chosen is self else None)
        modules = [
            module_of(networks.flat(row), chosen.family[class_id].spec, batch_norm=batch_norm).to(self.device)
            for row, class_id in enumerate(networks.class_ids.tolist())
        ]
        return modules[0] if one else modules

    def _one_latent(self, latent: Tensor | np.ndarray | str | Path) -> Tensor:
        """Return a latent (E,), given or of a file. Raises `NetspaceError` if a file holds none of this space's size."""
        if not isinstance(latent, str | Path):
            return self._fitting(torch.as_tensor(latent)[None])[0]
        read = read_state_dict(Path(latent)).get("latent")
        if read is None or read.numel() != self.latent:
            raise NetspaceError(
                f"{latent} was expected to hold a latent of {self.latent} numbers, such as `netspace encode` writes"
            )
        return self._fitting(read.reshape(1, -1))[0]

    def functional(
        self, latents: Tensor, inputs: Tensor, arch: str | Tensor | None = None, *, shared: bool = True
    ) -> Tensor:
        """The outputs of the networks that latents stand for, with gradients of latents and inputs.

        Args:
            latents: One latent (E,), or (M, E).
            inputs: (B, ...), normalised as the networks were trained; with `shared=False` (M, B, ...), for each its own.
            arch: The architecture to decode to, or ClassIds (M,); none: those that the latents stand for.
            shared: Whether all networks get the same inputs.

        Returns:
            Outputs (B, C) of one latent, (M, B, C) of several.

        >>> space = Space.load(run)
        >>> z = torch.zeros(space.latent, requires_grad=True)
        >>> outputs = space.functional(z, torch.zeros(5, 1, 8, 8))
        >>> outputs.shape, torch.autograd.grad(outputs.sum(), z)[0].shape
        (torch.Size([5, 10]), torch.Size([64]))
        """
        networks = self.decode_all(latents[None] if latents.ndim == 1 else latents, arch)
        inputs = inputs.to(self.device).float()

        def run(nets: NetBatch, flat: Tensor, *rows: Tensor) -> Tensor:
            return nets(flat, inputs if shared else inputs[rows[0].to(inputs.device)], shared=shared)

        outputs = networks.each(run, torch.arange(len(networks)))
        return outputs[0] if latents.ndim == 1 else outputs

    @descent.gradients()
    def refine(
        self,
        latents: Tensor,
        inputs: Tensor,
        outputs: Tensor,
        *,
        steps: int = 200,
        rate: float = 0.2,
        loss: descent.AnswerLoss = "values",
        seed: int = 0,
    ) -> Tensor:
        """Latents whose networks answer as they should, by descent from given ones: what an encoder reads errs by a little.

        Args:
            latents: One latent (E,), or (M, E); each stays a network of the architecture that it stands for.
            inputs: (N, ...), normalised as the networks were trained; a step takes 64 of them.
            outputs: What the networks should answer, (N, C) or (M, N, C), such as `network(inputs)`.
            steps: Of Adam; its rate falls like a cosine.
            rate: In units of the standard deviation of all numbers of the latents.
            loss: 'values' (squared differences, for any network), 'classes' (the recipe's KL divergence), or any from
                outputs and those expected, (M, 64, C) each, to the mean over networks.
            seed: Of the inputs that are drawn.

        Raises `UsageError` for latents, inputs or outputs that do not fit or are not finite, and settings out of range.
        >>> space = Space.load(run)
        >>> network, inputs = space.decode(torch.ones(space.latent)), torch.randn(100, 1, 8, 8)
        >>> z = space.refine(space.encode(network), inputs, network(inputs), steps=10)
        >>> z.shape
        torch.Size([64])
        """
        start = self._fitting(latents.detach()[None] if latents.ndim == 1 else latents.detach()).clone()
        config = validate(descent.DescentConfig, {"steps": steps, "rate": rate, "seed": seed}, "refine")
        samples = descent.SharedSamples.for_all(inputs.to(self.device), outputs.to(self.device), len(start))
        of_answers = descent.answer_loss(loss, self.recipe.loss)
        run = partial(self.functional, arch=self.class_ids(start))
        return descent.toward_answers(run, start, samples, of_answers, config).reshape(latents.shape)

    def decode_all(self, latents: Tensor, arch: str | Tensor | None = None) -> Networks:
        """The networks of latents (M, E): of the architectures they stand for, of one by name, or of ClassIds (M,); gradients
        of the latents pass through.

        Raises `UsageError` for latents of another size.
        """
        latents = self._fitting(latents)
        ids = torch.full((len(latents),), self.class_id(arch)) if isinstance(arch, str) else arch
        with autocast(self.precision, self.device):
            return decode(self.model, self.family, latents, ids)

    def decode_flat(self, latents: Tensor, arch: str | None = None) -> Tensor:
        """Flat parameters (M, P) of latents (M, E), all of one architecture; gradients of the latents pass through.

        `netspace.networks.prep.unflatten(flat[i], space.arch_class(arch).spec)` names them for `torch.func.functional_call`, and
        `space.arch_class(arch).nets(flat, images)` gives all networks' logits.
        """
        class_id = self.class_id(arch)
        with autocast(self.precision, self.device):
            networks = decode(self.model, self.family, self._fitting(latents), torch.full((len(latents),), class_id))
        return unpack(networks.preps, self.family[class_id].parameters)

    def networks(self, preps: Tensor, arch: str | None = None) -> Networks:
        """PReps (M, H, W) of one architecture, as they are, as networks of this space."""
        class_id = self.class_id(arch)
        flat = unpack(preps.to(self.device), self.family[class_id].parameters)
        return Networks.of_class(self.family, class_id, flat)

    def recognise(self, state: Mapping[str, Tensor]) -> ArchClass:
        """The architecture of a state dict, with batch norm or folded. Raises `NetspaceError` if it is none of these."""
        if not self.multi:
            return self.family[0]  # whose flat_parameters says what is wrong
        for each in self.family:
            if fits(state, each.spec):
                return each
        raise NetspaceError(
            f"this state dict is of none of this space's architectures ({self.family.names}): its {len(state)} tensors have "
            "other names or shapes"
        )

    def _fitting(self, latents: Tensor) -> Tensor:
        if latents.ndim != 2 or latents.shape[1] != self.latent:
            raise UsageError(
                f"latents of shape {tuple(latents.shape)} were given: (networks, {self.latent}) was expected"
            )
        return latents.to(self.device).float()
