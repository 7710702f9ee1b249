"""netspace: trained neural networks as data.

`load_space("digits")` gives a small latent space that comes with netspace, `Space.load(run)` one of your own, `Zoo(path)` a file
of trained networks, and `align(path, out)` writes the same networks with their channels in one order. `open_morph(run)` gives
networks of any width from what `netspace morph fit` wrote, and `load_morphed(path)` one that `netspace morph sample` wrote.
Nothing heavy is imported before it is used.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

    from model_zoo.align import align_zoo as align
    from netspace.saved_morph import load_morphed, open_morph
    from netspace.space import Space
    from netspace.zoo import Zoo

__version__: str  # of the installed package

__all__ = ["Space", "Zoo", "align", "load_morphed", "load_space", "open_morph"]


def load_space(name: str | Path, device: str | torch.device = "cpu") -> Space:
    """Return a space that comes with netspace ('digits'), or of a run folder, a folder of `save_pretrained`, or the hub (user/name).

    Raises `UsageError` for an unknown name, and `NetspaceError` as `Space.load` and `Space.from_pretrained`.

    >>> load_space("digits")
    Space(lenetlike (1,477 parameters) <-> 96 numbers; encoder probe, decoder linear, ... weights on cpu)
    """
    from netspace.errors import unknown
    from netspace.pretrained import bundled_spaces
    from netspace.space import Space

    if not Path(name).exists() and str(name) not in bundled_spaces():
        if "/" in str(name):
            return Space.from_pretrained(name, device=device)
        more = "Or give a run folder, a folder of save_pretrained, or a repository of the Hugging Face hub, user/name."
        raise unknown("space", name, bundled_spaces(), more)
    return Space.load(name, device)


def __getattr__(name: str) -> Any:
    if name == "__version__":
        from importlib.metadata import version

        return version("netspace")
    if name == "Space":
        from netspace.space import Space

        return Space
    if name == "Zoo":
        from netspace.zoo import Zoo

        return Zoo
    if name == "align":
        from model_zoo.align import align_zoo

        return align_zoo
    if name in ("load_morphed", "open_morph"):
        from netspace import saved_morph

        return getattr(saved_morph, name)
    raise AttributeError(f"module 'netspace' has no attribute {name!r}")
