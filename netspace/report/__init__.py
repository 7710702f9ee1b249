"""`netspace report`: a run folder, or the folder of a compressed network, as one self-contained HTML page and PNG figures.

Reads only what is on disk in the run folder; zoo and data may be elsewhere or gone. The same folder gives the same
page. Importing this is cheap: torch and matplotlib are imported when a report is written.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from netspace.report.picture import Picture
    from netspace.results.spaces import ReportFiles


def report(run: Path) -> ReportFiles:
    """Writes `figures/*.png` and `report.html` into a run folder, each atomically, and says what was written.

    `figures` and `report` are paths; `splits` are the evaluated ones; `missing` has one sentence, with the command
    that helps, for each part that could not be shown. A compressed network has neither splits nor interpolations. Raises
    `NetspaceError` for a folder that is neither, holds no results yet, cannot be written, or has a broken file.

    >>> result = report(run)
    >>> (run / "report.html").is_file()
    True
    """
    from netspace.report import compressed, compressed_page
    from netspace.report.collect import collect
    from netspace.report.compressed_pictures import pictures as compressed_pictures
    from netspace.report.missing import missing
    from netspace.report.page import page
    from netspace.report.pictures import pictures

    if compressed.is_fit(Path(run)):
        fitted = compressed.collect(Path(run))
        drawn, absent = compressed_pictures(fitted), compressed_page.missing(fitted)
        return _written(fitted.path, drawn, compressed_page.page(fitted, drawn, absent), absent)
    found = collect(Path(run))
    shown, lacking = pictures(found), missing(found)
    more = {"splits": list(found.evaluations), "interpolations": [line.name for line in found.lines]}
    return _written(found.path, shown, page(found, shown, lacking), lacking, **more)


def _written(
    folder: Path, shown: Sequence[Picture], html: str, lacking: Sequence[tuple[str, str]], **more: list[str]
) -> ReportFiles:
    from netspace.files import replacing, write_text
    from netspace.results.spaces import ReportFiles

    places = [folder / "figures" / f"{picture.name}.png" for picture in shown]
    for place, picture in zip(places, shown, strict=True):
        with replacing(place) as temporary:
            temporary.write_bytes(picture.png)
    write_text(folder / "report.html", html)
    return ReportFiles(
        run=str(folder),
        report=str(folder / "report.html"),
        figures=[str(place) for place in places],
        missing=[sentence.replace("`", "'") for _, sentence in lacking],
        **more,
    )
