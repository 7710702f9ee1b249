"""`netspace report`: a run folder, or the folder of a compressed network or a morph, as one self-contained HTML page and PNG figures.

Only files of the run folder are read; zoo and data may have moved or be deleted. The same folder gives the same
page. Importing this is cheap: torch, matplotlib and jinja2 are imported when a report is written.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from netspace.results.spaces import ReportFiles


def report(run: Path) -> ReportFiles:
    """Write `figures/*.png` and `report.html` into a run folder, each atomically, and return what was written.

    `figures` and `report` are paths; `splits` are the evaluated ones; `missing` has one sentence, with the command
    that helps, for each part that is left out. Compressed networks and morphs have neither splits nor interpolations.

    Raises:
        NetspaceError: the folder is neither, has no results yet, cannot be written, or has a broken file.

    >>> result = report(run)
    >>> (run / "report.html").is_file()
    True
    """
    from netspace.files import replacing, write_text
    from netspace.report import figures_compressed, figures_morph, morphs, page, runs, sections
    from netspace.report.drawing import styled
    from netspace.report.figures_behaviour import behaviour
    from netspace.report.figures_latents import latents, preps
    from netspace.report.figures_lines import lines, optimizations
    from netspace.report.figures_training import training
    from netspace.report.shapes import shapes
    from netspace.results.spaces import ReportFiles

    folder, more = Path(run), {}
    if morphs.is_morph(folder):
        morphed = morphs.read_morph(folder)
        drawn, missing = figures_morph.morph_pictures(morphed), morphs.morph_missing(morphed)
        if morphed.score:
            drawn = [picture.worded(morphed.score.word) for picture in drawn]
        html = page.morph_page(morphed, drawn, missing)
    elif runs.is_fit(folder):
        fitted = runs.read_fit(folder)
        drawn, missing = figures_compressed.pictures(fitted), sections.fit_missing(fitted)
        html = page.fit_page(fitted, drawn, missing)
    else:
        content = runs.read_run(folder)
        with styled():
            parts = (shapes, behaviour, lines, optimizations, preps, latents, training)
            drawn, missing = [picture for part in parts for picture in part(content)], sections.missing(content)
        if content.score:
            drawn = [picture.worded(content.score.word) for picture in drawn]
        html = page.run_page(content, drawn, missing)
        more = {"splits": list(content.evaluations), "interpolations": list(content.interpolations)}
    files = [folder / "figures" / f"{picture.name}.png" for picture in drawn]
    for file, picture in zip(files, drawn, strict=True):
        with replacing(file) as temporary:
            temporary.write_bytes(picture.png())
    write_text(folder / "report.html", html)
    return ReportFiles(
        run=str(folder),
        report=str(folder / "report.html"),
        figures=[str(file) for file in files],
        missing=[sentence.replace("`", "'") for _, sentence in missing],
        **more,
    )
