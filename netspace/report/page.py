"""The report as one HTML page: everything inlined, nothing loaded, nothing run.

Every text that comes from the run folder goes through `html.escape`; a content security policy forbids the browser
to load or run anything but the inlined images and style.
"""

from __future__ import annotations

from base64 import b64encode
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from typing import Any

from netspace.report.collect import Evaluation, Run, finite, part
from netspace.report.numbers import NOTHING, count, number, percent, points
from netspace.report.pictures import BASELINES, Picture
from netspace.report.style import CSS
from netspace.report.summary import summary, tiles

POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
CHAPTERS = (
    ("behaviour", "Do the predicted networks behave like their targets?"),
    ("lines", "Along lines between networks"),
    ("preps", "Networks and latents as pictures"),
    ("training", "Training"),
)
FIGURES = (
    ("members", count, "members"),
    ("accuracy_target", percent, "mean accuracy of targets"),
    ("accuracy_predicted", percent, "mean accuracy of predictions"),
    ("r2", lambda value: number(value, 3), "R² of predicted accuracies"),
    ("mae", points, "mean absolute difference of accuracy"),
    ("agreement", percent, "agreement: same answer on an image"),
    ("kl", lambda value: number(value, 3), "KL divergence from target to prediction, nats"),
    ("classid_accuracy", percent, "architecture recognised (ClassId)"),
    ("diversity", number, "diversity of predictions: mean L2 distance of pairs"),
    ("zoo_diversity", number, "diversity of targets: the same for them"),
)
VERSIONS = ("netspace", "python", "torch", "numpy", "h5py", "accelerate")  # of provenance.json


def page(run: Run, shown: Sequence[Picture], missing: Sequence[tuple[str, str]]) -> str:
    """The whole document; `missing` are (chapter, sentence) for what is not there."""
    title = escape(run.name)
    chapters = [_chapter(run, key, name, shown, missing) for key, name in CHAPTERS]
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
            f'<p class="summary">{escape(summary(run))}</p>',
            _tiles(tiles(run)),
            *(chapter for chapter in chapters if chapter),
            _provenance(run),
            "</main>",
            "</body>",
            "</html>",
            "",
        ]
    )


def _chapter(run: Run, key: str, name: str, shown: Sequence[Picture], missing: Sequence[tuple[str, str]]) -> str:
    pictures = [_figure(picture) for picture in shown if picture.part == key]
    notes = [f'<p class="missing">{_ticked(sentence)}</p>' for chapter, sentence in missing if chapter == key]
    tables = _measures(run) if key == "behaviour" and run.evaluations else []
    if not (pictures or notes or tables):
        return ""
    drawn = ['<div class="figures">', *pictures, "</div>"] if pictures else []
    return "\n".join(["<section>", f"<h2>{escape(name)}</h2>", *notes, *tables, *drawn, "</section>"])


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


def _measures(run: Run) -> list[str]:
    """Tables of figures: by split, by architecture, of the baselines."""
    found = run.evaluations
    rows = []
    for key, form, name in FIGURES:
        if any(finite(one.figures.get(key)) is not None for one in found.values()):
            rows.append([name, *(form(one.figures.get(key)) for one in found.values())])
    caption = "Figures by split of the zoo. All accuracies are on the task's test images."
    told = [_table(["", *(f"{split} split" for split in found)], rows, caption)]
    main = next(iter(found.values()))
    classes = part(main.figures, "per_class")
    if len(classes) > 1:
        told.append(
            _table(
                _HEADS,
                [_row(name, part(classes, name)) for name in classes],
                f"By architecture, {main.split} split.",
            )
        )
    others = part(main.figures, "baselines")
    if others:
        told.append(_baselines(main, others))
    return told


_HEADS = ["", "R²", "mean difference", "agreement", "mean accuracy"]


def _row(name: str, told: Mapping[str, Any]) -> list[str]:
    measured = number(told.get("r2"), 3), points(told.get("mae")), percent(told.get("agreement"))
    return [name, *measured, percent(told.get("accuracy_predicted"))]


def _baselines(main: Evaluation, others: Mapping[str, Any]) -> str:
    names = [name for name in BASELINES if name in others] + [name for name in others if name not in BASELINES]
    rows = [[*_row("the space", main.figures)[:4], "networks decoded from their latents"]]
    for name in names:
        scale = finite(part(others, name).get("scale"))
        more = f" ({number(scale)} of each layer's spread)" if scale is not None else ""
        rows.append([*_row(name, part(others, name))[:4], f"{BASELINES.get(name, NOTHING)}{more}"])
    caption = f"The space beside baselines, {main.split} split: what each answers for the same targets."
    return _table([*_HEADS[:4], "what answers"], rows, caption, glossed=True)


def _table(head: Sequence[str], rows: Iterable[Sequence[str]], caption: str, glossed: bool = False) -> str:
    """A table of numbers; if `glossed`, its first row is set apart and its last column is text."""
    kinds = ["n"] * (len(head) - 1 - glossed) + ["gloss"] * glossed
    heads = "".join(
        f'<th scope="col" class="{kind}">{escape(name)}</th>' for name, kind in zip(head[1:], kinds, strict=True)
    )
    body = []
    for place, (name, *values) in enumerate(rows):
        cells = "".join(f'<td class="{kind}">{escape(value)}</td>' for value, kind in zip(values, kinds, strict=True))
        own = ' class="own"' if glossed and not place else ""
        body.append(f'<tr{own}><th scope="row">{escape(name)}</th>{cells}</tr>')
    return (
        f'<div class="table" role="region" tabindex="0" aria-label="{escape(caption)}">'
        f"<table><caption>{escape(caption)}</caption><thead><tr><td></td>{heads}</tr></thead>"
        f"<tbody>{''.join(body)}</tbody></table></div>"
    )


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
    rows = (
        f'<tr><th scope="row">{escape("hash of the zoo" if name == "zoo_hash" else name)}</th>'
        f"<td>{escape(NOTHING if value is None else str(value))}</td></tr>"
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
            f"<pre>{escape(run.config)}</pre>",
            "</details>",
            "</section>",
        ]
    )


def _ticked(sentence: str) -> str:
    """A sentence escaped, what stands between backticks as code."""
    pieces = sentence.split("`")
    return "".join(f"<code>{escape(p)}</code>" if place % 2 else escape(p) for place, p in enumerate(pieces))
