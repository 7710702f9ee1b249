"""`netspace report`: what it writes, what it says where parts are missing, and what it refuses."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path

import numpy as np

from netspace.report import report
from netspace.results.spaces import ReportFiles

MakeRun = Callable[..., Path]


class Reader(HTMLParser):
    """Tags, what they would load, and the text between them; complains of tags that are not closed."""

    VOID = ("meta", "img", "br", "link")

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.loads: list[str] = []
        self.alts: list[str] = []
        self.text = ""
        self.open: list[str] = []
        self.feed(html)
        self.close()
        assert not self.open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.loads += [value or "" for name, value in attrs if name in ("src", "href", "srcset", "data", "action")]
        self.alts += [value or "" for name, value in attrs if name == "alt"]
        assert not any(name.startswith("on") for name, _ in attrs)
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] != "style":
            self.text += data


def read(told: ReportFiles) -> Reader:
    return Reader(Path(str(told.report)).read_text(encoding="utf-8"))


def change(file: Path, **values: object) -> None:
    file.write_text(json.dumps({**json.loads(file.read_text()), **values}))


def test_a_full_run_gives_page_and_figures(make_run: MakeRun) -> None:
    run = make_run(splits=("test", "train"), lines=2)
    told = report(run)
    json.dumps(told.payload())
    assert told.report == str(run / "report.html")
    assert {Path(name).name for name in told.figures} == {
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
    assert told.splits == ["test", "train"] and told.missing == []
    assert not list(run.rglob("*.tmp"))
    page = read(told)
    assert page.tags.count("img") == len(told.figures) == len(page.alts)
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


def test_figures_are_pictures_with_something_on_them(make_run: MakeRun) -> None:
    from matplotlib.image import imread

    for name in report(make_run(splits=("test", "val", "train"))).figures:
        pixels = imread(name)[..., :3]
        assert pixels.shape[1] == 960 and pixels.shape[0] > 400
        assert pixels.std() > 0.02 and len(np.unique(pixels.reshape(-1, 3), axis=0)) > 20


def test_the_page_loads_and_runs_nothing(make_run: MakeRun) -> None:
    told = report(make_run())
    html = Path(told.report).read_text(encoding="utf-8")
    page = Reader(html)
    assert all(load.startswith("data:image/png;base64,") for load in page.loads)
    assert not {"script", "link", "iframe", "object", "embed", "base"} & set(page.tags)
    assert not re.search(r"url\(|@import|https?://", html)
    assert "default-src 'none'" in html and "prefers-color-scheme: dark" in html


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
    assert "script" not in page.tags and "i" not in page.tags and "b" not in page.tags
    assert hostile in page.text and "</pre><script>alert(2)<!--" in page.text
    assert f"From {hostile} to" in page.text


def test_the_same_run_gives_the_same_page(make_run: MakeRun) -> None:
    run = make_run()
    first = Path(report(run).report).read_bytes()
    assert Path(report(run).report).read_bytes() == first


def test_importing_it_is_cheap() -> None:
    code = "import sys, netspace.report; print(sorted({'torch', 'matplotlib', 'numpy'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
