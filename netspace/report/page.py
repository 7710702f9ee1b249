"""The report as one HTML page from the templates: everything is inlined, nothing is loaded, one script is allowed by its hash.

Every text that comes from a folder is escaped by Jinja; the content security policy forbids the browser to load
anything, and to run anything but the script in `templates/page.js`.
"""

from __future__ import annotations

import hashlib
from base64 import b64encode
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from netspace.report.budgets import size_summary, size_tables, size_tiles
from netspace.report.drawing import MISSING, Picture
from netspace.report.morphs import Morphed, morph_summary, morph_tiles, order_tables, width_tables
from netspace.report.property_tables import property_tables
from netspace.report.runs import Fitted, Run
from netspace.report.sections import fit_summary, fit_tiles, summary, tiles
from netspace.report.shape_tables import shape_tables
from netspace.report.tables import Table, behaviour_tables, between_tables, bit_tables, gap_tables, search_tables

if TYPE_CHECKING:
    from jinja2 import Environment
    from markupsafe import Markup

    from netspace.results import Score

TEMPLATES = Path(__file__).parent / "templates"
RUN_SECTIONS = {
    "shapes": "Shapes",
    "behaviour": "Do the predicted networks behave like their targets?",
    "lines": "Along lines between networks",
    "preps": "Networks and latents as pictures",
    "training": "Training",
}
MORPH_SECTIONS = {
    "widths": "Networks of every width",
    "properties": "How alike networks of different widths are",
    "pictures": "What they make of inputs",
    "training": "Training",
}
FIT_SECTIONS = {
    "sizes": "Accuracy and bytes",
    "course": "The fit",
    "layers": "Layer by layer",
    "smooth": "Smooth weights and generalisation",
    "smaller": "Smaller still",
}
VERSIONS = ("netspace", "python", "torch", "numpy", "h5py", "accelerate")  # of provenance.json
Missing = Sequence[tuple[str, str]]  # the section that lacks something, and a sentence on it


@dataclass(frozen=True)
class Section:
    """One section of the page."""

    title: str
    notes: Sequence[str]  # sentences; text between backticks is code
    before: Sequence[Table]
    pictures: Sequence[Picture]
    after: Sequence[Table]


def run_page(run: Run, pictures: Sequence[Picture], missing: Missing) -> str:
    """Return the page of a run."""
    before = {
        "shapes": shape_tables(run),
        "behaviour": [*behaviour_tables(run), *property_tables(run)],
        "lines": between_tables(run),
    }
    sections = _sections(RUN_SECTIONS, pictures, missing, before, {"lines": search_tables(run)})
    return _page(run.path, summary(run), tiles(run), sections, _run_facts(run), run.config, run.score)


def fit_page(fitted: Fitted, pictures: Sequence[Picture], missing: Missing) -> str:
    """Return the page of a compressed network."""
    before = {"smooth": gap_tables(fitted), "smaller": bit_tables(fitted)}
    if fitted.budget is not None:
        before["sizes"] = size_tables(fitted.budget)
    facts = {
        "file": fitted.figures.file,
        "SHA-256 of the original's tensors": fitted.network,
        "order of kernels": fitted.figures.order,
    }
    known = {name: value for name, value in facts.items() if value is not None}
    sections = _sections(FIT_SECTIONS, pictures, missing, before, {})
    if fitted.budget is None:
        words, main = fit_summary(fitted), fit_tiles(fitted)
    else:
        words, main = size_summary(fitted.budget), size_tiles(fitted.budget)
    return _page(fitted.path, words, main, sections, known, fitted.config)


def morph_page(run: Morphed, pictures: Sequence[Picture], missing: Missing) -> str:
    """Return the page of a morph."""
    before = {"widths": width_tables(run), "training": order_tables(run)}
    sections = _sections(MORPH_SECTIONS, pictures, missing, before, {})
    facts = _facts(run.provenance)
    return _page(run.path, morph_summary(run), morph_tiles(run), sections, facts, run.config, run.score)


def policy(script: str) -> str:
    """Return the content security policy that lets a script run and nothing else."""
    digest = b64encode(hashlib.sha256(script.encode("utf-8")).digest()).decode("ascii")
    return f"default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'sha256-{digest}'"


def _sections(
    titles: Mapping[str, str],
    pictures: Sequence[Picture],
    missing: Missing,
    before: Mapping[str, Sequence[Table]],
    after: Mapping[str, Sequence[Table]],
) -> Iterable[Section]:
    for key, title in titles.items():
        notes = [sentence for section, sentence in missing if section == key]
        own = [picture for picture in pictures if picture.part == key]
        if notes or own or before.get(key) or after.get(key):
            yield Section(title, notes, before.get(key, ()), own, after.get(key, ()))


def _page(
    path: Path,
    summary: str,
    tiles: Sequence[tuple[str, str]],
    sections: Iterable[Section],
    facts: Mapping[str, Any],
    config: str,
    score: Score | None = None,
) -> str:
    """Return the page; with a `score` that is not accuracy, its own texts name the score."""
    from markupsafe import Markup, escape

    def finalize(value: Any) -> Any:
        return score.word(value) if score and isinstance(value, str) and not isinstance(value, Markup) else value

    shown = list(sections)
    turned = any(picture.viewer for section in shown for picture in section.pictures)
    scripts = ("page.js", "shapes.js") if turned else ("page.js",)
    script = "".join((TEMPLATES / name).read_text(encoding="utf-8") for name in scripts)
    return (
        (_environment().overlay(finalize=finalize, cache_size=0) if score else _environment())
        .get_template("page.html")
        .render(
            title=escape(path.resolve().name),
            run=escape(path),
            summary=summary,
            tiles=tiles,
            sections=shown,
            facts={name: escape(MISSING if value is None else value) for name, value in facts.items() if value != ""},
            config=escape(config),
            policy=policy(script),
            style=Markup((TEMPLATES / "page.css").read_text(encoding="utf-8")),
            script=Markup(script),
        )
    )


@cache
def _environment() -> Environment:
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(
        loader=FileSystemLoader(TEMPLATES),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=StrictUndefined,
    )
    environment.filters["code"] = _code
    return environment


def _code(sentence: str) -> Markup:
    """Return a sentence, escaped, with text between backticks as code."""
    from markupsafe import Markup, escape

    pieces = sentence.split("`")
    return Markup("").join(
        Markup("<code>{}</code>").format(piece) if index % 2 else escape(piece) for index, piece in enumerate(pieces)
    )


def _facts(provenance: Mapping[str, Any]) -> dict[str, Any]:
    """Return what is needed to make a result again."""
    rest = dict(provenance)
    machine = rest.pop("machine", None)
    names = {"command": "command", "seed": "seed", "zoo": "zoo", "zoo_hash": "hash of the zoo", "commit": "commit"}
    facts: dict[str, Any] = {title: rest.pop(name) for name, title in names.items() if name in rest}
    if isinstance(machine, dict):
        gpus = machine.get("gpus") or ["no GPU"]
        parts = [machine.get("system"), machine.get("processor"), f"{machine.get('cores')} cores", *gpus]
        facts["machine"] = ", ".join(str(piece) for piece in parts if piece)
    elif machine is not None:
        facts["machine"] = machine
    facts["versions"] = ", ".join(f"{name} {rest[name]}" for name in VERSIONS if name in rest)
    facts.update((name, value) for name, value in rest.items() if name not in VERSIONS)
    return facts


def _run_facts(run: Run) -> dict[str, Any]:
    """Return what is needed to make the results of a run again."""
    facts = _facts(run.provenance)
    for split, evaluated in run.evaluations.items():
        if evaluated.figures.versions:
            versions = (f"{name} {value}" for name, value in evaluated.figures.versions.items())
            facts[f"evaluated ({split}) with"] = ", ".join(versions)
    return facts
