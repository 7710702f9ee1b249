"""Progress of long work, on standard error: a bar with throughput and time left; plain lines if it is not a terminal.

NETSPACE_PROGRESS=off turns it off.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

LINE_EVERY = 10.0  # seconds between plain lines


class Progress:
    """Counts up to `total` units of work and prints a line every `LINE_EVERY` seconds."""

    def __init__(self, what: str, total: float, unit: str) -> None:
        self.what, self.total, self.unit = what, total, unit
        self.done = self._start_done = 0.0
        self.start = self._last_line = time.monotonic()

    def begin_at(self, done: float) -> None:
        """Set the units that an earlier, interrupted run has done; they do not count towards the throughput."""
        self.done = self._start_done = done

    def advance(self, units: float = 1, note: str = "") -> None:
        """Count `units` more as done; `note` is shown next to the bar."""
        self.done += units
        now = time.monotonic()
        if now - self._last_line >= LINE_EVERY:
            self._last_line = now
            rate = (self.done - self._start_done) / max(now - self.start, 1e-9)
            left = (self.total - self.done) / rate if rate > 0 else 0.0
            print(
                f"{self.what}: {self.done:,.0f} of {self.total:,.0f} {self.unit}, {rate:,.1f} a second, "
                f"{clock(left)} left {note}".rstrip(),
                file=sys.stderr,
                flush=True,
            )


class _Silent(Progress):
    def advance(self, units: float = 1, note: str = "") -> None:
        self.done += units


class _Bar(Progress):
    def __init__(self, what: str, total: float, unit: str) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
        from rich.progress import Progress as RichProgress

        super().__init__(what, total, unit)
        self.bar = RichProgress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=30),
            TextColumn("{task.percentage:>3.0f}% {task.fields[rate]}"),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            TextColumn("{task.fields[note]}"),
            console=Console(stderr=True),
        )
        self.task = self.bar.add_task(what, total=total, rate="", note="")
        self.bar.start()

    def begin_at(self, done: float) -> None:
        super().begin_at(done)
        self.bar.update(self.task, completed=done)

    def advance(self, units: float = 1, note: str = "") -> None:
        self.done += units
        rate = (self.done - self._start_done) / max(time.monotonic() - self.start, 1e-9)
        self.bar.update(self.task, advance=units, rate=f"{rate:,.1f} {self.unit}/s", note=note)

    def close(self) -> None:
        self.bar.stop()


@contextmanager
def progress(what: str, total: float, unit: str) -> Iterator[Progress]:
    """Show progress while the block runs: `what` is done, in `total` units called `unit`."""
    if os.environ.get("NETSPACE_PROGRESS", "").lower() in ("0", "off", "no"):
        yield _Silent(what, total, unit)
    elif sys.stderr.isatty():
        bar = _Bar(what, total, unit)
        try:
            yield bar
        finally:
            bar.close()
    else:
        yield Progress(what, total, unit)


def clock(seconds: float) -> str:
    """Return seconds as text.

    >>> clock(3725), clock(200), clock(12)
    ('1 h 02 min', '3 min 20 s', '12 s')
    """
    whole = round(seconds)
    if whole >= 3600:
        return f"{whole // 3600} h {whole % 3600 // 60:02d} min"
    return f"{whole // 60} min {whole % 60:02d} s" if whole >= 60 else f"{whole} s"
