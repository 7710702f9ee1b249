"""`netspace open`: what its page shows, and the page itself in a real browser."""

from __future__ import annotations

import json
import shutil
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers import refused

from netspace.commands import explore_map
from netspace.commands import open_page as pages
from netspace.commands.collection import opened
from netspace.commands.convert import resolve
from netspace.commands.explore import Explorer, principal_axes
from netspace.commands.explore_page import member_html, open_browser, start_server
from netspace.commands.interpolate import interpolate
from netspace.errors import UsageError
from netspace.space import Space

sys.path.insert(0, str(Path(__file__).parents[1] / "report"))
from browser import Page, chromium

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
PATIENCE = 120.0  # seconds for the page to show something


@pytest.fixture(scope="module")
def explorer(tiny_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Explorer]:
    run = Path(shutil.copytree(tiny_run, tmp_path_factory.mktemp("runs") / "run"))
    with opened(run, None, "cpu") as members:
        yield Explorer(members)


def test_principal_axes_are_those_of_a_decomposition() -> None:
    values = np.random.default_rng(0).standard_normal((300, 6)).astype(np.float32) * np.array(
        [1, 5, 2, 1, 3, 1], np.float32
    )
    mean = values.mean(0)
    axes = principal_axes(values, mean, chunk=7)
    right = np.linalg.svd(values - mean, full_matrices=False)[2][:2]
    assert np.abs((right * axes.T).sum(1)) == pytest.approx([1, 1], abs=1e-5)
    assert (axes[np.abs(axes).argmax(0), [0, 1]] > 0).all()
    flat = principal_axes(np.ones((4, 1), np.float32), np.ones(1, np.float32))
    assert flat.shape == (1, 2)


def test_neighbours_and_runs_are_those_of_a_slow_search(explorer: Explorer) -> None:
    distances = np.linalg.norm(explorer.values - explorer.values[3], axis=1)
    expected = [row for row in np.argsort(distances, kind="stable").tolist() if row != 3][:8]
    assert [row for row, _ in explorer.nearest(3)] == expected
    assert explorer.nearest(3)[0][1] == pytest.approx(distances[expected[0]], rel=1e-5)
    table = explorer.members.table
    own = explorer.lineage(3)
    assert 3 in own and set(table["run"][own]) == {table["run"][3]} and (np.diff(table["epochs"][own]) >= 0).all()
    text = member_html(explorer, 3)
    assert "lenetlike/0003" in text and explorer.members.name(expected[0]) in text


def test_names_from_files_cannot_control_the_page(explorer: Explorer, monkeypatch: pytest.MonkeyPatch) -> None:
    table = explorer.members.table.copy()
    table["source"][0] = b"<script>alert(1)</script>"
    monkeypatch.setitem(explorer.members.__dict__, "table", table)
    assert "<script>" not in member_html(explorer, 0) and "&lt;script&gt;" in member_html(explorer, 0)


def test_a_line_is_that_of_interpolate(explorer: Explorer) -> None:
    run = explorer.members.path
    slow = interpolate(run, "lenetlike/0001", "lenetlike/0020", steps=3)
    points = list(explorer.line(1, 20, steps=3))
    assert [each.gamma for each in points] == [0, 0.5, 1]
    assert [each.latent for each in points] == pytest.approx(slow.latent_accuracy, abs=0.005)
    assert [each.weights for each in points] == pytest.approx(slow.weight_accuracy, abs=0.005)


def test_a_point_that_was_not_moved_decodes_to_its_member(explorer: Explorer) -> None:
    x, y = explorer.map[7].tolist()
    found = explorer.moved(x, y)
    assert found.nearest == 7 and found.arch == "lenetlike"
    space = Space.load(explorer.members.path)
    named = resolve("lenetlike/0007", space, explorer.members.zoo)
    images, labels = (
        explorer.members.task.inputs("test", slice(None)),
        explorer.members.task.targets("test", slice(None)),
    )
    with torch.no_grad():
        right = space.decode(named.latent)(images).argmax(1) == labels
    assert found.score == pytest.approx(float(right.double().mean()), abs=0.005)


def test_a_zoo_has_a_map_and_lines_of_weights_but_nothing_to_decode(
    multi_zoo: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with opened(multi_zoo, None, "cpu") as members:
        found = Explorer(members)
        assert found.by == "answers" and not found.can_decode and found.map.shape == (members.count, 2)
        assert found.names("architecture") == ["lenet", "vanilla", "resnet"] or len(found.names("architecture")) == 3
        points = list(found.line(0, 1, steps=2))
        assert [each.latent for each in points] == [None, None]
        assert [each.weights for each in points] == pytest.approx(members.table["accuracy_test"][:2].tolist(), abs=0.01)
        with pytest.raises(UsageError, match="different architectures"):
            list(found.line(0, members.count - 1))
        with pytest.raises(UsageError, match="no latent"):
            found.moved(0.0, 0.0)
        for each in Path(str(found.index.path if found.index else "")).parent.iterdir():
            each.unlink()


def value_of(page: Page, script: str) -> Any:
    """What an expression gives once it gives something."""
    end = time.monotonic() + PATIENCE
    while time.monotonic() < end:
        if value := page.run(script):
            return value
        time.sleep(0.1)
    raise AssertionError(f"nothing came of {script}: {page.errors}")


def model(name: str) -> str:
    return f"Bokeh.documents[0].get_model_by_name({name!r})"


VIEW = """(() => { const find = (view) => view.model && view.model.name == NAME ? view :
    (view.child_views || []).map(find).find((each) => each);
  const view = Bokeh.index.roots.map(find).find((each) => each), box = (view.canvas_view || view).el.getBoundingClientRect();
  return WHERE; })()"""
CENTRE = "[box.x + box.width / 2, box.y + box.height / 2]"
DOT = """(() => { const data = view.model.renderers.find((each) => each.name == 'dots').data_source.data;
  return [box.x + view.frame.x_scale.compute(data.x[INDEX]), box.y + view.frame.y_scale.compute(data.y[INDEX])]; })()"""


def click(page: Page, position: list[float]) -> None:
    mouse = {"x": position[0], "y": position[1]}
    page.call("Input.dispatchMouseEvent", type="mouseMoved", **mouse)
    for kind in ("mousePressed", "mouseReleased"):
        page.call("Input.dispatchMouseEvent", type=kind, button="left", clickCount=1, **mouse)


def where(page: Page, name: str, expression: str = CENTRE) -> list[float]:
    return list(page.run(VIEW.replace("NAME", json.dumps(name)).replace("WHERE", expression)))


@pytest.fixture(scope="module")
def page(explorer: Explorer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Page]:
    assert CHROMIUM, "a Chromium is needed to test the page"
    started: list[Any] = []

    def serve() -> None:
        import asyncio

        asyncio.set_event_loop(asyncio.new_event_loop())
        server = start_server(explorer, 0)
        started.append(server)
        server.io_loop.start()
        server.io_loop.close()

    thread = threading.Thread(target=serve, daemon=True)
    thread.start()
    end = time.monotonic() + PATIENCE
    while not started and time.monotonic() < end:
        time.sleep(0.05)
    assert started, "the server did not start"
    try:
        with chromium(CHROMIUM, tmp_path_factory.mktemp("browser")) as tab:
            tab.call("Emulation.setDeviceMetricsOverride", width=1280, height=950, deviceScaleFactor=1, mobile=False)
            tab.call("Page.navigate", url=f"http://127.0.0.1:{started[0].port}/")
            value_of(tab, "typeof Bokeh != 'undefined' && Bokeh.documents.length && !!Bokeh.index.roots.length")
            yield tab
    finally:
        started[0].io_loop.add_callback(lambda: (started[0].stop(), started[0].io_loop.stop()))
        thread.join(30)


def test_the_page_in_a_browser(page: Page, explorer: Explorer) -> None:
    assert value_of(page, f"{model('count')}.text") == "36 of 36 members"
    elsewhere = "performance.getEntriesByType('resource').map((each) => each.name).filter((each) => !each.startsWith(location.origin))"
    assert page.run(f"{elsewhere}.length") == 0  # nothing comes from a network
    value_of(page, VIEW.replace("NAME", '"map"').replace("WHERE", "box.width > 100"))
    for end, index in (("A", 1), ("B", 20)):
        before = json.dumps(page.run(f"{model('figures')}.text"))
        click(page, where(page, "map", DOT.replace("INDEX", str(index))))
        value_of(page, f"{model('figures')}.text != {before} && {model('figures')}.text.includes('nearest by latents')")
        time.sleep(0.5)  # the buttons below move with the text
        click(page, where(page, end))
        value_of(page, f"{model('state')}.text.includes('{end}: lenetlike/')")
    click(page, where(page, "draw"))
    line = f"{model('line')}.renderers[0].data_source.data"
    value_of(page, f"{line}.gamma.length == 11")
    assert page.run(f"Array.from({line}.latent).every((each) => each >= 0 && each <= 1)")
    x, y = where(page, "map", DOT.replace("INDEX", "5"))
    click(page, where(page, "moving"))
    value_of(page, f"{model('moving')}.active")
    click(page, [x + 15, y + 15])
    assert "decoded at the star: lenetlike" in value_of(
        page, f"{model('state')}.text.includes('star') && {model('state')}.text"
    )
    assert not [each for each in page.errors if '"level": "error"' in each or "exceptionThrown" in each]


def test_the_page_has_one_column_on_a_phone(page: Page) -> None:
    size = {"height": 950, "deviceScaleFactor": 1}
    left = [VIEW.replace("NAME", f'"{name}"').replace("WHERE", "box.left") for name in ("map", "line")]
    try:
        page.call("Emulation.setDeviceMetricsOverride", width=390, mobile=True, **size)
        value_of(page, "window.innerWidth == 390 && document.documentElement.scrollWidth == 390")
        value_of(page, f"{left[1]} < 60")
    finally:
        page.call("Emulation.setDeviceMetricsOverride", width=1280, mobile=False, **size)
    value_of(page, f"{left[1]} > {left[0]} + 400")


def test_a_filter_leaves_members_out(page: Page, explorer: Explorer) -> None:
    script = """(() => { const found = [...Bokeh.documents[0]._all_models.values()].find((each) => each.type == 'RangeSlider');
      const middle = (found.start + found.end) / 2; found.value = [middle, found.end]; found.value_throttled = found.value;
      return middle; })()"""
    middle = float(page.run(script))
    accuracy = explorer.column("accuracy_test")
    kept = int((accuracy >= middle).sum())
    assert 0 < kept < 36
    value_of(page, f"{model('count')}.text == '{kept} of 36 members'")


def test_a_large_map_is_an_image_until_few_members_are_visible(
    page: Page, explorer: Explorer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(explore_map, "MAX_GLYPHS", 4)
    page.call("Page.navigate", url=page.run("location.href"))
    image, dots = (
        f"{model('map')}.renderers.find((each) => each.name == '{name}').data_source.data" for name in ("image", "dots")
    )
    value_of(page, f"typeof Bokeh != 'undefined' && Bokeh.documents.length && {image}.image.length == 1")
    assert page.run(f"Array.from({dots}.x).length") == 0
    value_of(page, VIEW.replace("NAME", '"map"').replace("WHERE", "box.width > 100"))
    own = explorer.map[5]
    at = f"[box.x + view.frame.x_scale.compute({own[0]}), box.y + view.frame.y_scale.compute({own[1]})]"
    click(page, where(page, "map", at))
    value_of(page, f"{model('figures')}.text.includes('lenetlike/0005')")
    page.run(
        f"""(() => {{ const map = {model("map")}; for (const [range, middle] of [[map.x_range, {own[0]}], [map.y_range, {own[1]}]])
        {{ const half = (range.end - range.start) / 2000; range.setv({{start: middle - half, end: middle + half}}); }} }})()"""
    )
    value_of(page, f"{image}.image.length == 0 && Array.from({dots}.x).some((x) => Math.abs(x - {own[0]}) < 1e-5)")
    assert not [each for each in page.errors if '"level": "error"' in each or "exceptionThrown" in each]


def test_what_stands_in_the_way_is_one_sentence(
    tiny_zoo: Path, cli: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        refused(cli("open", tiny_zoo, "--port", str(port), "--no-browser"), 2, f"port {port}", "--port")
    refused(cli("open", tiny_zoo, "--port", "70000"), 2, "--port", "70000")
    refused(cli("open", tiny_zoo, "--map", "globe"), 2, "globe", "umap")
    refused(cli("open", "gone.h5"), 1, "gone.h5 does not exist")
    monkeypatch.setattr(pages.importlib.util, "find_spec", lambda name: None)
    refused(cli("open", tiny_zoo), 2, "netspace[page]")


def test_a_browser_that_is_not_there_is_a_warning(monkeypatch: pytest.MonkeyPatch) -> None:
    import webbrowser

    monkeypatch.setattr(webbrowser, "open", lambda url: False)
    assert not open_browser("http://127.0.0.1:1/")
