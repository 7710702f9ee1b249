"""The page in headless Chromium: it fits its window, follows light and dark, sorts, and answers on the map."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from browser import Page, chromium

from netspace.report import report

PROGRAM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(PROGRAM is None, reason="no Chromium on this machine to show the page"),
]
MakeRun = Callable[..., Path]
PANEL = "document.querySelector('div.line')"


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Page]:
    with chromium(str(PROGRAM), tmp_path_factory.mktemp("profile")) as opened:
        yield opened


@pytest.fixture
def file(make_run: MakeRun) -> Path:
    run = make_run(splits=("test",), lines=1, members=6)
    (line,) = (run / "interpolations").iterdir()
    line.write_text(json.dumps({**json.loads(line.read_text()), "from": "lenetlike/0002", "to": "lenetlike/0004"}))
    return Path(report(run).report)


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1400, 390])
def test_the_page_in_its_window(page: Page, file: Path, width: int, scheme: str) -> None:
    from io import BytesIO

    from matplotlib.image import imread

    page.open(file, width, scheme)
    assert page.run("document.documentElement.scrollWidth") == width
    pixels = imread(BytesIO(page.picture()))[..., :3]
    assert (pixels[2, 2].mean() > 0.9) == (scheme == "light")
    ink, paper = page.run(
        "['svg text', 'body'].map((each, index) => getComputedStyle(document.querySelector(each))"
        "[index ? 'backgroundColor' : 'fill'])"
    )
    dark, light = (
        ("rgb(28, 32, 36)", "rgb(253, 253, 252)") if scheme == "light" else ("rgb(230, 232, 234)", "rgb(21, 24, 27)")
    )
    assert (ink, paper) == (dark, light)
    outside = (
        "[...document.querySelectorAll('svg')].filter(e => e.getBoundingClientRect().right > innerWidth + 1).length"
    )
    assert page.run(outside) == 0
    assert page.errors == []


def test_a_click_on_a_header_sorts(page: Page, file: Path) -> None:
    page.open(file, 1400, "light")
    column = (
        "[...document.querySelectorAll('.table')[1].querySelectorAll('tbody tr')].map(row => row.cells[1].textContent)"
    )
    assert page.run(column)[1:] == ["0.991", "0.950", "0.970", "−4.210"]
    heads = ".table:nth-of-type(2) th"
    page.point_at(heads, 1, click=True)
    actual = page.run(column)
    values = [float(value.replace("−", "-")) for value in actual]
    assert values == sorted(values) and values[0] == -4.21
    page.point_at(heads, 1, click=True)
    assert page.run(column) == actual[::-1]


def test_the_map_answers(page: Page, file: Path) -> None:
    page.open(file, 1400, "light")
    assert page.run("document.getElementById('tip').hidden")
    page.point_at(".dot", 3)
    assert not page.run("document.getElementById('tip').hidden")
    text = page.run("document.getElementById('tip').textContent")
    assert text.startswith("lenetlike/0003test split; accuracy ")
    page.point_at(".dot", 2, click=True)
    assert "Choose a second network" in page.run(f"{PANEL}.textContent")
    page.point_at(".dot", 4, click=True)
    assert page.run(f"{PANEL}.querySelector('p').textContent") == "The line from lenetlike/0002 to lenetlike/0004"
    assert (
        page.run(f"{PANEL}.querySelectorAll('svg').length") == 1
        and page.run("document.querySelectorAll('.between').length") == 1
    )
    page.point_at(".dot", 0, click=True)
    page.point_at(".dot", 1, click=True)
    command = page.run(f"{PANEL}.querySelector('code').textContent")
    assert command == f"netspace interpolate --from lenetlike/0000 --to lenetlike/0001 --run {file.parent}"
    assert page.errors == []


def test_the_points_of_a_line_answer(page: Page, file: Path) -> None:
    page.open(file, 390, "dark")
    page.point_at('.mark[data-name="aligned weights"]', 5)
    text = page.run("document.getElementById('tip').textContent")
    assert text.startswith("aligned weightsγ 0.50; accuracy ")
    page.point_at('.mark[data-name="latents"]', 5, click=True)  # which chooses nothing
    assert page.run("document.getElementById('tip').textContent").startswith("latentsγ 0.50")
    assert page.run(f"{PANEL}.hidden") and page.errors == []


def test_no_other_script_runs(page: Page, file: Path) -> None:
    page.open(file, 1400, "light")
    inserted = "const made = document.createElement('script'); made.textContent = 'window.foreign = 1'; document.body.append(made)"
    page.run(f"(() => {{ {inserted} }})()")
    page.run(
        "(() => { const made = document.createElement('p'); made.setAttribute('onclick', 'window.foreign = 2'); document.body.append(made); made.click() })()"
    )
    assert page.run("window.foreign") is None
    assert any("Content Security Policy" in error for error in page.errors)
    page.errors.clear()
