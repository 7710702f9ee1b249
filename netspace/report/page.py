"""The report as one HTML page: everything inlined, nothing loaded, nothing run.

Every text that comes from the run folder goes through `html.escape`; a content security policy forbids the browser
to load or run anything but the inlined images and style.
"""

from __future__ import annotations

from base64 import b64encode
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from netspace.report.collect import Run
from netspace.report.numbers import NOTHING
from netspace.report.picture import Picture
from netspace.report.reading import part
from netspace.report.style import CSS
from netspace.report.summary import summary, tiles
from netspace.report.tables import tables

POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
CHAPTERS = (
    ("behaviour", "Do the predicted networks behave like their targets?"),
    ("lines", "Along lines between networks"),
    ("preps", "Networks and latents as pictures"),
    ("training", "Training"),
)
VERSIONS = ("netspace", "python", "torch", "numpy", "h5py", "accelerate")  # of provenance.json


def page(run: Run, shown: Sequence[Picture], missing: Sequence[tuple[str, str]]) -> str:
    """The whole document; `missing` are (chapter, sentence) for what is not there."""
    chapters = [_chapter(run, key, name, shown, missing) for key, name in CHAPTERS]
    return document(run.name, summary(run), tiles(run), [*chapters, _provenance(run)])


def document(title: str, said: str, told: Sequence[tuple[str, str]], sections: Sequence[str]) -> str:
    """The page around its sections, which are HTML: title, a paragraph, tiles as (name, value)."""
    title = escape(title)
    return "\n".join(
        [
            "<!DOCTYPE html>",
            '<html lang="en">',
            "<head>",
            '<meta charset="utf-8">',
            f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">',
            '<meta name="viewport" content="width=device-width, initial-scale=1">',
            '<meta name="color-scheme" content="light dark">',
            f"<title>{title} · netspace report</title>",
            f"<style>{CSS}</style>",
            "</head>",
            "<body>",
            "<header>",
            '<p class="kind">netspace report</p>',
            f"<h1>{title}</h1>",
            "</header>",
            "<main>",
            f'<p class="summary">{escape(said)}</p>',
            _tiles(told),
            *(section for section in sections if section),
            "</main>",
            "</body>",
            "</html>",
            "",
        ]
    )


def _chapter(run: Run, key: str, name: str, shown: Sequence[Picture], missing: Sequence[tuple[str, str]]) -> str:
    before, after = tables(run, key)
    return chapter(key, name, shown, missing, before, after)


def chapter(
    key: str,
    name: str,
    shown: Sequence[Picture],
    missing: Sequence[tuple[str, str]],
    before: Sequence[str] = (),
    after: Sequence[str] = (),
) -> str:
    """The section of a chapter, its notes, figures and the tables around them; empty if it has none of these."""
    pictures = [_figure(picture) for picture in shown if picture.part == key]
    notes = [f'<p class="missing">{_ticked(sentence)}</p>' for place, sentence in missing if place == key]
    if not (pictures or notes or before or after):
        return ""
    drawn = ['<div class="figures">', *pictures, "</div>"] if pictures else []
    return "\n".join(["<section>", f"<h2>{escape(name)}</h2>", *notes, *before, *drawn, *after, "</section>"])


def _figure(picture: Picture) -> str:
    data = b64encode(picture.png).decode("ascii")
    return "\n".join(
        [
            f'<figure class="{"wide" if picture.wide else "half"}">',
            f"<h3>{escape(picture.title)}</h3>",
            f'<img alt="{escape(picture.alt)}" src="data:image/png;base64,{data}">',
            f"<figcaption>{escape(picture.caption)}</figcaption>",
            "</figure>",
        ]
    )


def _tiles(told: Sequence[tuple[str, str]]) -> str:
    if not told:
        return ""
    each = (f"<div><dt>{escape(name)}</dt><dd>{escape(value)}</dd></div>" for name, value in told)
    return f'<dl class="tiles">{"".join(each)}</dl>'


def _provenance(run: Run) -> str:
    """What someone needs to make this result again."""
    told = dict(run.provenance)
    machine = told.pop("machine", None)
    facts: dict[str, Any] = {
        name: told.pop(name) for name in ("command", "seed", "zoo", "zoo_hash", "commit") if name in told
    }
    if isinstance(machine, dict):
        gpus = machine.get("gpus") or ["no GPU"]
        parts = [machine.get("system"), machine.get("processor"), f"{machine.get('cores')} cores", *gpus]
        facts["machine"] = ", ".join(str(piece) for piece in parts if piece)
    elif machine is not None:
        facts["machine"] = machine
    facts["versions"] = ", ".join(f"{name} {told[name]}" for name in VERSIONS if name in told)
    facts.update((name, value) for name, value in told.items() if name not in VERSIONS)
    for split, found in run.evaluations.items():
        versions = part(found.figures, "versions")
        if versions:
            facts[f"evaluated ({split}) with"] = ", ".join(f"{name} {value}" for name, value in versions.items())
    return provenance(
        {"hash of the zoo" if name == "zoo_hash" else name: value for name, value in facts.items()}, run.config
    )


def provenance(facts: Mapping[str, Any], config: str) -> str:
    """The last section: facts by name, and the settings."""
    rows = (
        f'<tr><th scope="row">{escape(name)}</th><td>{escape(NOTHING if value is None else str(value))}</td></tr>'
        for name, value in facts.items()
        if value != ""
    )
    return "\n".join(
        [
            "<section>",
            "<h2>Provenance</h2>",
            f'<table class="facts"><tbody>{"".join(rows)}</tbody></table>',
            "<details>",
            "<summary>config.yaml, with every default resolved</summary>",
            f"<pre>{escape(config)}</pre>",
            "</details>",
            "</section>",
        ]
    )


def _ticked(sentence: str) -> str:
    """A sentence escaped, what stands between backticks as code."""
    pieces = sentence.split("`")
    return "".join(f"<code>{escape(p)}</code>" if place % 2 else escape(p) for place, p in enumerate(pieces))
