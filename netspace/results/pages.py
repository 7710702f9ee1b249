"""Result of `netspace open`, printed once the page can be opened."""

from __future__ import annotations

from netspace.results import Result


class OpenPage(Result):
    """`netspace open`."""

    url: str
    members: int
    by: str  # latents, answers or statistics: what the map is of
    map: str  # principal axes or umap
