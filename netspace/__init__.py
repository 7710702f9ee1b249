"""netspace: trained neural networks as data.

`Space.load(run)` gives a trained latent space, `Zoo(path)` a file of trained networks. Nothing heavy is imported
before it is used.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from netspace.space import Space
    from netspace.zoo import Zoo

__all__ = ["Space", "Zoo"]


def __getattr__(name: str) -> Any:
    if name == "Space":
        from netspace.space import Space

        return Space
    if name == "Zoo":
        from netspace.zoo import Zoo

        return Zoo
    raise AttributeError(f"module 'netspace' has no attribute {name!r}")
