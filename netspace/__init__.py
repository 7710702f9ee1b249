"""netspace: trained neural networks as data.

`Space.load(run)` gives a trained latent space, `Zoo(path)` a file of trained networks, and `align(path, out)` writes the same
networks with their channels in one order. `open_morph(run)` gives networks of any width from what `netspace morph fit` wrote,
and `load_morphed(path)` one that `netspace morph sample` wrote. Nothing heavy is imported before it is used.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from model_zoo.align import align_zoo as align
    from netspace.saved_morph import load_morphed, open_morph
    from netspace.space import Space
    from netspace.zoo import Zoo

__all__ = ["Space", "Zoo", "align", "load_morphed", "open_morph"]


def __getattr__(name: str) -> Any:
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
