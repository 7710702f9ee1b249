"""A figure of the report with its words."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Picture:
    """One figure of the report. Texts are plain; the page escapes them."""

    name: str  # of its file, without suffix
    part: str  # the chapter of the page that it belongs to
    title: str
    png: bytes
    alt: str
    caption: str
    wide: bool = True  # over the whole width of the page, not half of it
