"""The page of `netspace open`, served by Bokeh on this machine alone: a map of members, and panels for what is picked on it.

Bokeh's server and scripts are those of the installed package: the page loads nothing from a network. Long computations run
in one thread, and their results are sent to the page as they arrive. Axes: M members.
"""

from __future__ import annotations

import html
import socket
import webbrowser
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
from jinja2 import Environment

from netspace.commands.explore import COLUMNS, Explorer, LinePoint
from netspace.commands.explore_map import MapPlot
from netspace.errors import NetspaceError, UsageError, first_line

if TYPE_CHECKING:
    from bokeh.document import Document
    from bokeh.server.server import Server

TEMPLATE = """{% extends base %}
{% block preamble %}<meta name="viewport" content="width=device-width, initial-scale=1">{% endblock %}"""
PANEL_WIDTHS = (300, 430)  # pixels
ADDRESS = "127.0.0.1"  # nobody else can connect


def start_server(explorer: Explorer, port: int) -> Server:
    """Return a started server of the page; port 0 is any free one. Raises `UsageError` if the port is in use."""
    from bokeh.application import Application
    from bokeh.application.handlers import FunctionHandler
    from bokeh.server.server import Server

    port = _free_port(port)
    work = ThreadPoolExecutor(1, thread_name_prefix="explore")
    application = Application(FunctionHandler(lambda document: Page(explorer, document, work).fill()))
    server = Server(
        {"/": application},
        address=ADDRESS,
        port=port,
        allow_websocket_origin=[f"{name}:{port}" for name in (ADDRESS, "localhost")],  # no page of another site
    )
    server.start()
    return server


def _free_port(port: int) -> int:
    """Return the port, or for 0 any free one. Raises `UsageError` if it is in use."""
    with socket.socket() as free:
        free.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as the server: one that was just closed is free
        try:
            free.bind((ADDRESS, port))
        except OSError as error:
            raise UsageError(
                f"port {port} of {ADDRESS} cannot be used ({error.strerror}): give another --port, or 0 for any free one"
            ) from None
        return int(free.getsockname()[1])


def open_browser(url: str) -> bool:
    """Open a page in the user's browser; return whether there is one."""
    try:
        return webbrowser.open(url)
    except webbrowser.Error:
        return False


class Page:
    """The page of one visitor."""

    def __init__(self, explorer: Explorer, document: Document, work: ThreadPoolExecutor) -> None:
        from bokeh.models import Button as BokehButton
        from bokeh.models import ColumnDataSource, Div, RangeSlider, Select, Toggle

        self.explorer, self.document, self.work = explorer, document, work
        count = explorer.members.count
        self.map = MapPlot(explorer.map, document, f"{count:,} members by {explorer.by}, {explorer.kind}")
        self.picked: int | None = None
        self.ends: dict[str, int | None] = {"A": None, "B": None}
        self.request = 0  # number of the newest line: points of older ones are dropped
        self.line = ColumnDataSource({"gamma": [], "latent": [], "weights": []})
        known = [name for name in COLUMNS if len(np.unique(self._column(name)[np.isfinite(self._column(name))])) > 1]
        names = known or [COLUMNS[0]]
        self.colour = Select(title="colour", value=names[0], options=names)
        self.filter = Select(title="show members with", value=names[0], options=names)
        self.range = RangeSlider(start=0, end=1, value=(0, 1), step=0.01, title="between")
        self.count, self.figures, self.state = Div(text="", name="count"), Div(text="Click a member.", name="figures"), Div(text="", name="state")  # fmt: skip
        self.moving = Toggle(label="decode where I click", name="moving")
        self.buttons = {
            "A": BokehButton(label="take as A", name="A"),
            "B": BokehButton(label="take as B", name="B"),
            "line": BokehButton(label="line from A to B", name="draw", button_type="primary"),
        }

    def _column(self, name: str) -> np.ndarray:
        return self.explorer.column(name)

    def fill(self) -> None:
        """Put all parts into the document."""
        from bokeh.layouts import column, row

        self._set_range()
        self._show_rows()
        self.colour.on_change("value", lambda attr, old, new: self._show_rows())
        self.filter.on_change("value", lambda attr, old, new: self._filter_by())
        self.range.on_change("value_throttled", lambda attr, old, new: self._show_rows())
        self.map.on_tap(self._clicked)
        if self.explorer.can_decode:
            self.map.on_double_tap(self._move)
        for name in ("A", "B"):
            self.buttons[name].on_click(partial(self._take, name))
        self.buttons["line"].on_click(self._draw_line)
        panel = column(
            row(self.colour, self.filter),
            self.range,
            self.count,
            self.figures,
            row(*self.buttons.values()),
            *([self.moving] if self.explorer.can_decode else []),
            self._line_figure(),
            self.state,
            sizing_mode="stretch_width",
            min_width=PANEL_WIDTHS[0],
            max_width=PANEL_WIDTHS[1],
        )
        self.document.template = Environment(autoescape=True).from_string(TEMPLATE)
        self.document.add_root(
            row(
                self.map.plot, panel, sizing_mode="stretch_width", styles={"flex-wrap": "wrap"}
            )  # a phone has one column
        )
        self.document.title = f"{self.explorer.members.path.name} - netspace"

    def _line_figure(self) -> Any:
        from bokeh.models import Range1d
        from bokeh.plotting import figure

        plot = figure(
            name="line",
            height=230,
            sizing_mode="stretch_width",
            tools="",
            x_range=Range1d(-0.03, 1.03),
            title="line from A to B",
        )
        for name, colour in (("latent", "#D55E00"), ("weights", "#0072B2")):
            plot.line("gamma", name, source=self.line, color=colour, legend_label=name)
            plot.scatter("gamma", name, source=self.line, color=colour, size=6)
        plot.toolbar.logo = None
        plot.legend.location, plot.legend.orientation = "bottom_center", "horizontal"
        plot.yaxis.axis_label = f"{self.explorer.score_name}, test"
        return plot

    # --- the map ---

    def _set_range(self) -> None:
        values = self._column(self.filter.value)
        values = values[np.isfinite(values)]
        low, high = (float(values.min()), float(values.max())) if len(values) else (0.0, 1.0)
        high = high if high > low else low + 1
        whole = bool((values == np.round(values)).all())
        self.range.update(start=low, end=high, value=(low, high), step=1 if whole else (high - low) / 200)

    def _filter_by(self) -> None:
        self._set_range()
        self._show_rows()

    def _show_rows(self) -> None:
        """Send the members that the filter keeps, with their colours."""
        values, (low, high) = self._column(self.filter.value), self.range.value
        whole = low <= self.range.start and high >= self.range.end
        kept = np.ones(len(values), bool) if whole else (values >= low) & (values <= high)
        rows = np.flatnonzero(kept)
        colours = self._column(self.colour.value)
        known = colours[np.isfinite(colours)]
        names = self.explorer.names(self.colour.value)
        low_c, high_c = (float(known.min()), float(known.max())) if len(known) else (0.0, 1.0)
        self.map.show(rows, colours[rows], names, low_c, high_c)
        shown = f"{len(rows):,} of {self.explorer.members.count:,} members"
        legend = ", ".join(f"{index}: {html.escape(name)}" for index, name in enumerate(names))
        self.count.text = f"{shown}{f'; colours are {legend}' if legend else ''}"

    def _mark(self) -> None:
        """Mark the picked member, A and B, and draw the run of the picked one."""
        named = {**{f"{end}": position for end, position in self.ends.items()}, "": self.picked}
        chosen = [(label, position) for label, position in named.items() if position is not None]
        points = self.explorer.map[[position for _, position in chosen]] if chosen else np.empty((0, 2))
        self.map.marks.data = {"x": points[:, 0], "y": points[:, 1], "label": [label for label, _ in chosen]}
        run = self.explorer.map[self.explorer.lineage(self.picked)] if self.picked is not None else np.empty((0, 2))
        self.map.path.data = {"x": run[:, 0], "y": run[:, 1]}

    def _clicked(self, member: int | None, x: float, y: float) -> None:
        if member is not None:
            self.picked = member
            self.figures.text = member_html(self.explorer, member)
            self._mark()
        if self.moving.active and self.explorer.can_decode:
            self._move(x, y)

    # --- lines and points ---

    def _take(self, end: str) -> None:
        if self.picked is None:
            self.state.text = "Click a member first."
            return
        self.ends[end] = self.picked
        self.state.text = ", ".join(
            f"{name}: {html.escape(self.explorer.members.name(position))}"
            for name, position in self.ends.items()
            if position is not None
        )
        self._mark()

    def _draw_line(self) -> None:
        first, second = self.ends["A"], self.ends["B"]
        if first is None or second is None:
            self.state.text = "Take one member as A and another as B first."
            return
        self.request += 1
        self.line.data = {"gamma": [], "latent": [], "weights": []}
        self.work.submit(self._compute, partial(self._compute_line, first, second, self.request))

    def _compute_line(self, first: int, second: int, request: int) -> None:
        for point in self.explorer.line(first, second):
            if request != self.request:
                return
            self._later(partial(self._add_point, point, request))

    def _add_point(self, point: LinePoint, request: int) -> None:
        if request == self.request:
            values = {name: [np.nan if value is None else value] for name, value in vars(point).items()}
            self.line.stream(values)
            self.state.text = f"gamma {point.gamma:.1f}"

    def _move(self, x: float, y: float) -> None:
        self.map.star.data = {"x": [x], "y": [y]}
        self.state.text = "decoding ..."
        self.work.submit(self._compute, partial(self._compute_moved, x, y))

    def _compute_moved(self, x: float, y: float) -> None:
        found = self.explorer.moved(x, y)
        near = html.escape(self.explorer.members.name(found.nearest))
        text = f"decoded at the star: {html.escape(found.arch)}, {self.explorer.score_name} {found.score:.4g} on test inputs; moved from {near}"  # fmt: skip
        self._later(partial(self._say, text))

    def _compute(self, job: Callable[[], None]) -> None:
        """Run a job in the thread; what goes wrong is a sentence on the page."""
        try:
            job()
        except NetspaceError as error:
            self._later(partial(self._say, html.escape(first_line(error))))
        except Exception as error:  # a page that waits for ever says nothing
            self._later(partial(self._say, html.escape(f"{type(error).__name__}: {first_line(error)}")))

    def _later(self, change: Callable[[], None]) -> None:
        self.document.add_next_tick_callback(change)

    def _say(self, text: str) -> None:
        self.state.text = text


def member_html(explorer: Explorer, position: int) -> str:
    """Return what is known of a member as HTML: its figures, its run epoch by epoch, and the nearest members."""
    rows = "".join(
        f"<tr><td>{html.escape(name)}</td><td><b>{html.escape(value)}</b></td></tr>"
        for name, value in explorer.figures(position).items()
    )
    table, members = explorer.members.table, explorer.members
    run = ", ".join(
        f"{html.escape(members.name(row))} (epoch {table['epochs'][row]}, {table['accuracy_test'][row]:.3f})"
        for row in explorer.lineage(position).tolist()[:20]
    )
    near = "".join(
        f"<li>{html.escape(members.name(row))}: {distance:.3g}, {table['accuracy_test'][row]:.3f}</li>"
        for row, distance in explorer.nearest(position)
    )
    return (
        f"<table>{rows}</table><p>its run: {run}</p>"
        f"<p>nearest by {explorer.by} (distance, {html.escape(explorer.score_name)}):</p><ol>{near}</ol>"
    )
