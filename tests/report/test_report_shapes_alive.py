"""Shapes in headless Chromium: they are drawn, turn by mouse and keys, and follow the slider and the page's colours."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from browser import Page, chromium
from shape_files import add_shapes

from netspace.report import report

PROGRAM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(PROGRAM is None, reason="no Chromium on this machine to show the page"),
]
CANVAS = "document.querySelectorAll('.shapes canvas')"
PIXELS = (  # how many pixels of a canvas are covered, and the mean column of their brightness
    "(() => {{ const canvas = {canvas}[{index}]; const data = canvas.getContext('2d').getImageData(0, 0, canvas.width, "
    "canvas.width).data; let count = 0, sum = 0; for (let i = 0; i < data.length; i += 4) {{ count += data[i + 3] > 0; "
    "sum += data[i] * (i % 9973); }} return [count / canvas.width ** 2, sum]; }})()"
)


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Page]:
    with chromium(str(PROGRAM), tmp_path_factory.mktemp("profile")) as opened:
        yield opened


@pytest.fixture
def file(make_run: Callable[..., Path]) -> Path:
    run = make_run(lines=0, members=6)
    add_shapes(run)
    return Path(report(run).report)


def pixels(page: Page, index: int) -> list[float]:
    frames = "new Promise(done => requestAnimationFrame(() => requestAnimationFrame(() => done())))"
    page.call("Runtime.evaluate", expression=frames, awaitPromise=True)
    return list(page.run(PIXELS.format(canvas=CANVAS, index=index)))


def errors(page: Page) -> list[str]:
    """What the page did wrong; that this file reads canvases often is no error of the page."""
    return [error for error in page.errors if "Multiple readback operations" not in error]


def slide(page: Page, viewer: int, frame: int) -> None:
    page.run(
        f"(() => {{ const slider = document.querySelectorAll('.shapes input')[{viewer}]; slider.value = {frame};"
        "slider.dispatchEvent(new Event('input')); })()"
    )


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1400, 390])
def test_shapes_are_drawn_at_every_width(page: Page, file: Path, width: int, scheme: str) -> None:
    page.open(file, width, scheme)
    assert page.run("document.documentElement.scrollWidth") == width
    assert not page.run("document.querySelector('.shapes').hidden")
    for index in range(3):
        covered, _ = pixels(page, index)
        assert 0.1 < covered < 0.8
    assert page.run(f"[...{CANVAS}].every(each => each.clientWidth >= 120)")
    assert errors(page) == []


def test_a_ball_covers_the_circle_that_it_should(page: Page, file: Path) -> None:
    """Of radius 0.6 in a view of half a side of 1.1."""
    page.open(file, 1400, "light")
    covered, _ = pixels(page, 0)
    assert covered == pytest.approx(3.14159 * 0.36 / (2 * 1.1) ** 2, rel=0.03)


def test_all_shapes_of_a_viewer_turn_together(page: Page, file: Path) -> None:
    page.open(file, 1400, "light")
    slide(page, 0, 0)
    before = [pixels(page, index) for index in range(4)]
    page.run(f"{CANVAS}[0].dispatchEvent(new KeyboardEvent('keydown', {{key: 'ArrowRight', cancelable: true}}))")
    after = [pixels(page, index) for index in range(4)]
    assert before[0] != after[0] and before[1] != after[1] and before[2:] == after[2:]
    page.run(f"{CANVAS}[0].dispatchEvent(new KeyboardEvent('keydown', {{key: 'ArrowLeft', cancelable: true}}))")
    assert pixels(page, 0)[1] == pytest.approx(before[0][1], rel=0.01)


def test_the_mouse_turns(page: Page, file: Path) -> None:
    page.open(file, 1400, "light")
    slide(page, 0, 0)
    before = pixels(page, 1)
    page.point_at(".shapes canvas", 1)
    x, y = page.run(
        f"(() => {{ const box = {CANVAS}[1].getBoundingClientRect(); return [box.x + box.width / 2, box.y + box.height / 2] }})()"
    )
    page.call("Input.dispatchMouseEvent", type="mousePressed", button="left", clickCount=1, x=x, y=y)
    page.call("Input.dispatchMouseEvent", type="mouseMoved", button="left", buttons=1, x=x + 40, y=y + 10)
    page.call("Input.dispatchMouseEvent", type="mouseReleased", button="left", clickCount=1, x=x + 40, y=y + 10)
    turned = pixels(page, 1)
    assert turned != before
    page.call("Input.dispatchMouseEvent", type="mouseMoved", x=x, y=y)  # no button is down
    assert pixels(page, 1) == turned and errors(page) == []


def test_the_slider_shows_other_shapes(page: Page, file: Path) -> None:
    page.open(file, 390, "dark")
    slide(page, 1, 0)
    start = pixels(page, 3)
    slide(page, 1, 2)
    covered, _ = pixels(page, 3)  # empty, which is written
    assert page.run("document.querySelectorAll('.shapes output')[1].textContent") == "γ 0.50"
    assert 0 < covered < 0.05 < start[0]
    assert errors(page) == []
