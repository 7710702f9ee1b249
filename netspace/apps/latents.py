"""Where the networks of an architecture lie in a latent space: what new ones are drawn from.

Axes: N latents, E latent size, P parameters.
"""

from __future__ import annotations

import torch
from torch import Tensor

from netspace.errors import NetspaceError
from netspace.family import ArchClass
from netspace.prep import unpack
from netspace.runtime import generator
from netspace.space import Space
from netspace.store import Zoo
from netspace.training.setting import shown_rows

BANK = 4096  # training members that are drawn from and compared with, at most
PAIRS = 256  # of a smallest and a largest network, for an architecture that was never shown


def known_latents(space: Space, zoo: Zoo, class_id: int) -> Tensor:
    """Latents (N, E) of the training members that the space was shown of an architecture.

    Of one that was never shown: points between random pairs of the smallest and the largest architecture's, at the factor
    that Eq. 12 gives it.
    """
    if space.family[class_id].shown:
        return _shown(space, zoo, class_id)
    random = generator(0, 29)
    ends = [_shown(space, zoo, place) for place in (0, len(space.family) - 1)]
    first, last = (end[torch.randint(len(end), (PAIRS,), generator=random).to(end.device)] for end in ends)
    return torch.lerp(first, last, space.family.factor(class_id))


def known_networks(space: Space, zoo: Zoo, arch: ArchClass) -> Tensor | None:
    """Flat parameters (N, P) of the zoo's training members of an architecture; None if it has none.

    Those that the space was shown; of an architecture never shown all, to compare with.
    """
    if arch.id not in zoo.archs:
        return None
    group = zoo.group(arch.id)
    rows = shown_rows(space.recipe, zoo, group).numpy() if arch.shown else group.rows("train")
    return unpack(group.read(rows[:BANK]).to(space.device), arch.parameters) if len(rows) else None


def _shown(space: Space, zoo: Zoo, class_id: int) -> Tensor:
    arch = space.family[class_id]
    if not arch.shown or arch.id not in zoo.archs:
        raise NetspaceError(f"{zoo.path} has no networks of {arch.id}, whose latents are needed")
    group = zoo.group(arch.id)
    rows = shown_rows(space.recipe, zoo, group)[:BANK]
    return space.encode_preps(group.read(rows.numpy()), arch.id)
