"""`netspace report`: what it writes, what it says where parts are missing, and what it refuses."""

from __future__ import annotations

import hashlib
import json
import re
import subprocess
import sys
from base64 import b64encode
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest

from netspace.report import report
from netspace.results.spaces import ReportFiles

MakeRun = Callable[..., Path]


class Reader(HTMLParser):
    """Tags, what they would load, and the text between them; complains of tags that are not closed."""

    VOID = ("meta", "img", "br", "link", "input")

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.loads: list[str] = []
        self.alts: list[str] = []
        self.text = ""
        self.policies: list[str] = []
        self.open: list[str] = []
        self.feed(html)
        self.close()
        assert not self.open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        loading = ("src", "href", "xlink:href", "srcset", "data", "action")
        self.loads += [value or "" for name, value in attrs if name in loading and not (value or "").startswith("#")]
        self.alts += [value or "" for name, value in attrs if tag == "svg" and name == "aria-label"]
        if ("http-equiv", "Content-Security-Policy") in attrs:
            self.policies += [value or "" for name, value in attrs if name == "content"]
        assert not any(name.startswith("on") for name, _ in attrs)
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] not in ("style", "script"):
            self.text += data


def read(told: ReportFiles) -> Reader:
    return Reader(Path(str(told.report)).read_text(encoding="utf-8"))


def change(file: Path, **values: object) -> None:
    file.write_text(json.dumps({**json.loads(file.read_text()), **values}))


def test_a_full_run_gives_page_and_figures(make_run: MakeRun) -> None:
    run = make_run(splits=("test", "train"), lines=2)
    result = report(run)
    json.dumps(result.payload())
    assert result.report == str(run / "report.html")
    assert {Path(name).name for name in result.figures} == {
        "members-test.png",
        "members-train.png",
        "scatter-test.png",
        "baselines-test.png",
        "interpolation-mean-test.png",
        "interpolation-mean-train.png",
        "interpolation-lenetlike-0000--lenetlike-0099.png",
        "interpolation-lenetlike-0001--lenetlike-0099.png",
        "preps-test.png",
        "latents.png",
        "training.png",
    }
    assert result.splits == ["test", "train"] and result.missing == []
    assert not list(run.rglob("*.tmp"))
    page = read(result)
    assert page.tags.count("svg") == len(result.figures) == len(page.alts)
    assert all(len(alt) > 40 for alt in page.alts)
    for words in (
        "91.3 %",
        "lenetlike networks of 4,810 parameters",
        "nearest_latent",
        "11.40",
        "14.90",
        "Provenance",
    ):
        assert words in page.text
    assert "ab12" * 16 in page.text and "steps: 4000" in page.text and "netspace train space/digits" in page.text


def test_lines_show_latents_weights_and_aligned_weights(make_run: MakeRun) -> None:
    run = make_run(lines=1)
    html = Path(report(run).report).read_text(encoding="utf-8")
    mean, chosen = re.findall(r'<figure class="narrow"[^>]*>\s*<h3>(?:Mean over|From).*?</figure>', html, re.DOTALL)
    for figure, accuracies in ((mean, "20.0 % to 95.0 %"), (chosen, "10.0 % to 90.0 %")):
        assert [name for name in ("latents", "weights", "aligned weights") if f">{name}</text>" not in figure] == []
        assert f"The accuracies of aligned weights are {accuracies}." in figure
        assert "Green triangles are the same with aligned weights" in figure
        marks = re.findall(r'class="mark" cx="[\d.]+" cy="[\d.]+" r="6" tabindex="-1" data-name="(.*?)"', figure)
        assert marks == ["latents"] * 11 + ["weights"] * 11 + ["aligned weights"] * 11
    assert 'data-name="aligned weights" data-text="γ 0.50; accuracy 30.0 %"' in chosen
    (file,) = (run / "interpolations").iterdir()
    earlier = json.loads(file.read_text())
    del earlier["aligned_accuracy"]
    file.write_text(json.dumps(earlier))
    html = Path(report(run).report).read_text(encoding="utf-8")
    assert html.count(">aligned weights</text>") == 1  # the mean's


def test_figures_are_pictures_with_something_on_them(make_run: MakeRun) -> None:
    from matplotlib.image import imread

    for name in report(make_run(splits=("test", "val", "train"))).figures:
        pixels = imread(name)[..., :3]
        assert pixels.shape[1] == 960 and pixels.shape[0] > 400
        colours = np.rint(255 * pixels).astype(np.int64) @ (1, 256, 65536)
        assert pixels.std() > 0.02 and len(np.unique(colours)) > 20


def test_the_page_loads_nothing_and_runs_its_own_script_alone(make_run: MakeRun) -> None:
    result = report(make_run())
    html = Path(result.report).read_text(encoding="utf-8")
    page = Reader(html)
    assert all(load.startswith("data:image/png;base64,") for load in page.loads)
    assert not {"link", "iframe", "object", "embed", "base", "img"} & set(page.tags)
    (script,) = re.findall(r"<script>(.*?)</script>", html, re.DOTALL)
    allowed = b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert page.policies == [
        f"default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'sha256-{allowed}'"
    ]
    assert not re.search(r"url\((?!#)|@import|https?://", html)
    assert "prefers-color-scheme: dark" in html


def test_hostile_names_stay_text(make_run: MakeRun) -> None:
    hostile = "<script>alert(1)<&'\"> $x_1$ `rm` 网络"
    run = make_run(name=hostile.replace("/", ""), lines=0)
    (run / "config.yaml").write_text("# </pre><script>alert(2)<!-- \nname: x\n")
    change(run / "provenance.json", command=hostile, extra={"<b>": hostile}, machine="<i>")
    evaluation = json.loads((run / "eval-test.json").read_text())
    evaluation["detail"]["member"] = [f"{hostile}/{row}" for row in range(40)]
    evaluation["baselines"][hostile] = evaluation["baselines"].pop("average")
    evaluation["per_class"] = {hostile: {}, "b": {"r2": 0.5}}
    change(run / "eval-test.json", **evaluation)
    line = {
        "from": hostile,
        "to": "$\\frac{",
        "gamma": [0, 1],
        "latent_accuracy": [0.1, 0.9],
        "spearman": None,
    }
    (run / "interpolations").mkdir()
    (run / "interpolations" / "line.json").write_text(json.dumps(line))
    (run / "metrics.jsonl").write_text(json.dumps({"step": 1, "$loss_": 0.5, "网络": 2.0}) + "\n")
    page = read(report(run))
    assert page.tags.count("script") == 1 and "i" not in page.tags and "b" not in page.tags
    assert hostile in page.text and "</pre><script>alert(2)<!--" in page.text
    assert f"From {hostile} to" in page.text


def test_the_same_run_gives_the_same_page(make_run: MakeRun) -> None:
    run = make_run()
    first = Path(report(run).report).read_bytes()
    assert Path(report(run).report).read_bytes() == first


def test_importing_it_is_cheap() -> None:
    code = "import sys, netspace.report; print(sorted({'torch', 'matplotlib', 'numpy', 'jinja2'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_figures_follow_the_colours_of_the_page(make_run: MakeRun) -> None:
    """Ink, grey and paper are variables of the style sheet; ids are not repeated."""
    html = Path(report(make_run(splits=("test", "train"))).report).read_text(encoding="utf-8")
    drawings = "".join(re.findall(r"<svg.*?</svg>", html, re.DOTALL))
    assert "var(--ink)" in drawings and "var(--grey)" in drawings
    assert not re.search(r"#222222|#767676|#ffffff|#000000", drawings) and "<style" not in drawings
    assert set(re.findall(r"var\((--\w+)\)", html)) <= set(re.findall(r"(--\w+):", html))
    assert not re.findall(r'<g id="', drawings)


@pytest.mark.usefixtures("words_alone")
def test_the_map_names_every_network_and_lines_name_their_ends(make_run: MakeRun) -> None:
    html = Path(report(make_run(lines=2, members=5)).report).read_text(encoding="utf-8")
    names = re.findall(r'<circle class="dot"[^>]* data-name="([^"]*)" data-text="([^"]*)"', html)
    assert [name for name, _ in names] == [f"lenetlike/{row:04d}" for row in range(5)]
    assert all(
        re.fullmatch(r"test split; accuracy [\d.]+ %, predicted [\d.]+ %, same answer 90.0 %", text)
        for _, text in names
    )
    ends = re.findall(r'data-start="([^"]*)" data-end="([^"]*)"', html)
    assert ends == [("lenetlike/0000", "lenetlike/0099"), ("lenetlike/0001", "lenetlike/0099")]


def test_areas_lie_over_the_dots_of_the_map(make_run: MakeRun) -> None:
    """In the units of the SVG, where matplotlib put the dots themselves."""
    html = Path(report(make_run(members=6)).report).read_text(encoding="utf-8")
    (drawing,) = [each for each in re.findall(r"<svg.*?</svg>", html, re.DOTALL) if 'class="dot"' in each]
    areas = re.findall(r'class="dot" cx="([\d.]+)" cy="([\d.]+)"', drawing)
    dots = {(float(x), float(y)) for x, y in re.findall(r'<use [^>]*x="([\d.]+)" y="([\d.]+)"', drawing)}
    assert len(areas) == 6
    for x, y in areas:
        assert min(abs(float(x) - one) + abs(float(y) - other) for one, other in dots) < 0.2
