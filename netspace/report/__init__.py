"""`netspace report`: a run folder as one self-contained HTML page and PNG figures.

Reads only what is on disk in the run folder; zoo and data may be elsewhere or gone. The same folder gives the same
page. Importing this is cheap: torch and matplotlib are imported when a report is written.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any


def report(run: Path) -> dict[str, Any]:
    """Writes `figures/*.png` and `report.html` into a run folder, each atomically, and says what was written.

    `figures` and `report` are paths; `splits` are the evaluated ones; `missing` has one sentence, with the command
    that helps, for each part that could not be shown. Raises `NetspaceError` for a folder that is not a run, holds
    no results yet, cannot be written, or has a broken file.
    """
    from netspace.report.collect import collect
    from netspace.report.missing import missing
    from netspace.report.page import page
    from netspace.report.pictures import pictures
    from netspace.runtime import replacing, write_text

    found = collect(Path(run))
    shown, lacking = pictures(found), missing(found)
    places = [found.path / "figures" / f"{picture.name}.png" for picture in shown]
    for place, picture in zip(places, shown, strict=True):
        with replacing(place) as temporary:
            temporary.write_bytes(picture.png)
    html = found.path / "report.html"
    write_text(html, page(found, shown, lacking))
    return {
        "run": str(run),
        "report": str(html),
        "figures": [str(place) for place in places],
        "splits": list(found.evaluations),
        "interpolations": [line.name for line in found.lines],
        "missing": [sentence.replace("`", "'") for _, sentence in lacking],
    }
