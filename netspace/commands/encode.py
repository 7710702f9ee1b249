"""`netspace encode`: the latent of a network in a file, as the encoder reads it or refined.

Axes: E latent size.
"""

from __future__ import annotations

from pathlib import Path

from netspace.commands.convert import resolve, write_latent, zoo_of, zoo_or_none
from netspace.commands.refine import check_refine, refined
from netspace.results.spaces import Encoding
from netspace.space import Space
from netspace.training.setup import task_of


def encode(
    run: Path, network: str, output: Path, zoo_path: Path | None = None, device: str = "cpu", refine: int | None = None
) -> Encoding:
    """Write the latent (E,) of a network as safetensors.

    With `refine` it goes on by so many steps of descent on what the network answers to the zoo's training inputs
    (`netspace.commands.refine`).

    Raises:
        UsageError: the network is not known, or has no weights to refine its latent by; or as `resolve`.
        NetspaceError: the zoo is not at hand, and `refine` is given; or as `resolve`.

    >>> from netspace.commands.convert import read_latent
    >>> result = encode(run, "best", folder / "latent.safetensors", refine=5)
    >>> read_latent(folder / "latent.safetensors", Space.load(run)).shape
    torch.Size([64])
    """
    if refine is not None:
        check_refine(refine)
    space = Space.load(run, device)
    if refine is None:
        zoo = zoo_or_none(run, zoo_path)
        try:
            named = resolve(network, space, zoo)
        finally:
            if zoo is not None:
                zoo.close()
    else:
        with zoo_of(run, zoo_path) as zoo:
            (named,) = refined(space, zoo, [resolve(network, space, zoo)], task_of(zoo, space.device), refine)
    arch, how = space.family[named.class_id].id, {} if refine is None else {"refined": refine}
    notes = {name: str(value) for name, value in how.items()}
    write_latent(output, named.latent, run=str(run), network=named.name, arch=arch, **notes)
    return Encoding(run=str(run), network=named.name, arch=arch, latent=space.latent, file=str(output), **how)
