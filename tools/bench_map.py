"""How many times a second the map of `netspace open` moves while it is dragged, in headless Chromium without a GPU.

    python tools/bench_map.py [--members 100000] [--zoom 1] [--seconds 6] [--picture before.png]

Members are drawn from normal distributions; none of their networks exist. The mouse moves in circles with its button down,
and `requestAnimationFrame` counts the frames in which the map has moved since the frame before. On a machine that others use,
the processor time of the browser for each of them says more than their number a second. An older commit is measured by
this script with PYTHONPATH set to that commit's folder.
"""

from __future__ import annotations

import argparse
import asyncio
import shutil
import sys
import tempfile
import threading
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import psutil

from netspace.commands.explore import MAPS, Explorer
from netspace.commands.explore_page import start_server

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests" / "report"))
from browser import Page, chromium

CLUSTERS = 5
COUNT = """window.frames_moved = 0; window.frames_all = 0; window.longest = 0; (() => {
  const range = Bokeh.documents[0].get_model_by_name('map').x_range;
  let before = range.start, then = performance.now();
  const tick = (now) => { if (window.done) return; window.frames_all += 1; window.longest = Math.max(window.longest, now - then);
    then = now; if (range.start != before) { window.frames_moved += 1; before = range.start; }
    requestAnimationFrame(tick); };
  window.done = false; requestAnimationFrame(tick); })()"""
ZOOM = """(() => { const map = Bokeh.documents[0].get_model_by_name('map');
  for (const range of [map.x_range, map.y_range]) { const middle = (range.start + range.end) / 2 + OFFSET;
    const half = (range.end - range.start) / 2 / FACTOR; range.setv({start: middle - half, end: middle + half}); } })()"""


class Drawn(Explorer):
    """A map of points that are no networks."""

    def __init__(self, count: int) -> None:
        random = np.random.default_rng(0)
        self.cluster = random.integers(CLUSTERS, size=count)
        centres = random.standard_normal((CLUSTERS, 2)) * 3
        self.map = (centres[self.cluster] + random.standard_normal((count, 2))).astype(np.float32)
        self.accuracy = 1 / (1 + np.exp(-self.map[:, 0] - random.standard_normal(count)))
        self.members = SimpleNamespace(count=count, path=Path("drawn.h5"))  # type: ignore[assignment]
        self.kind, self.by, self.score_name = MAPS[0], "answers", "accuracy"

    @property
    def can_decode(self) -> bool:
        """Whether a point of the map is a latent."""
        return False

    def column(self, name: str) -> np.ndarray:
        """Return the accuracy (M,), or the cluster as the architecture."""
        return self.cluster.astype(np.float64) if name == "architecture" else self.accuracy

    def names(self, column: str) -> list[str]:
        """Return the names of the clusters."""
        return [f"cluster {index}" for index in range(CLUSTERS)] if column == "architecture" else []


def value(page: Page, script: str, seconds: float = 60) -> Any:
    """Return what an expression gives once it gives something."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if found := page.run(script):
            return found
        time.sleep(0.2)
    raise TimeoutError(f"nothing came of {script}: {page.errors}")


def browser_time() -> float:
    """Return the processor time in seconds of this process's children, which are the browser's."""
    return sum(each.cpu_times().user + each.cpu_times().system for each in psutil.Process().children(recursive=True))


def drag(page: Page, seconds: float) -> str:
    """Drag the map in circles; return its moves and all frames a second, the longest frame, and what a move costs."""

    def mouse(kind: str, angle: float) -> None:
        x, y = 400 + 120 * np.sin(angle), 400 + 120 * np.cos(angle)
        page.call("Input.dispatchMouseEvent", type=kind, x=float(x), y=float(y), button="left", buttons=1, clickCount=1)

    mouse("mousePressed", 0.0)
    page.run(COUNT)
    began, events, browser, server = time.monotonic(), 0, browser_time(), time.process_time()
    while time.monotonic() - began < seconds:
        events += 1
        mouse("mouseMoved", events / 20)
    moved, frames, longest = page.run("window.done = true, [window.frames_moved, window.frames_all, window.longest]")
    passed = time.monotonic() - began
    browser, server = browser_time() - browser, time.process_time() - server
    mouse("mouseReleased", events / 20)
    each = 1000 / max(moved, 1)
    return (
        f"{moved / passed:.1f} moves a second, {frames / passed:.1f} frames, the longest of {longest:.0f} ms; processor time of a "
        f"move: {each * browser:.1f} ms in the browser, {each * server:.1f} ms in this process"
    )


def serve(explorer: Explorer, started: list[Any]) -> None:
    """Serve the page in this thread until its loop is stopped."""
    asyncio.set_event_loop(asyncio.new_event_loop())
    server = start_server(explorer, 0)
    started.append(server)
    server.io_loop.start()


def main() -> None:
    """Open the page, drag its map, and print the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--members", type=int, default=100_000)
    parser.add_argument("--zoom", type=float, default=1, help="how much closer than the whole map")
    parser.add_argument("--offset", type=float, default=0, help="where to zoom, on both axes")
    parser.add_argument("--seconds", type=float, default=6)
    parser.add_argument("--picture", type=Path, help="screenshot before dragging, as PNG")
    given = parser.parse_args()
    program = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if program is None:
        sys.exit("a Chromium is needed, and none was found on PATH")
    started: list[Any] = []
    thread = threading.Thread(target=serve, args=(Drawn(given.members), started), daemon=True)
    thread.start()
    while not started:
        time.sleep(0.05)
    with tempfile.TemporaryDirectory() as profile, chromium(program, Path(profile)) as page:
        page.call("Emulation.setDeviceMetricsOverride", width=1280, height=900, deviceScaleFactor=1, mobile=False)
        page.call("Page.navigate", url=f"http://127.0.0.1:{started[0].port}/")
        value(page, "typeof Bokeh != 'undefined' && Bokeh.documents.length && !!Bokeh.index.roots.length")
        value(page, "!!Bokeh.documents[0].get_model_by_name('count').text")
        time.sleep(3)
        if given.zoom != 1:
            page.run(ZOOM.replace("FACTOR", str(given.zoom)).replace("OFFSET", str(given.offset)))
            time.sleep(3)
        if given.picture:
            given.picture.write_bytes(page.picture())
        print(
            f"{given.members:,} members, {given.zoom:g} times closer: {drag(page, given.seconds)}; {len(page.errors)} errors"
        )
    started[0].io_loop.add_callback(started[0].io_loop.stop)
    thread.join(10)


if __name__ == "__main__":
    main()
