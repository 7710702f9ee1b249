"""`netspace open`: a page on this machine to walk through a zoo or a run."""

from __future__ import annotations

import importlib.util
import signal
import warnings
from collections.abc import Callable
from pathlib import Path

from netspace.commands.collection import opened
from netspace.commands.explore import MAPS, Explorer
from netspace.errors import NetspaceWarning, UsageError
from netspace.results.members import OpenPage

PORT = 5100


def open_page(
    path: Path,
    report: Callable[[OpenPage], None],
    port: int = PORT,
    browser: bool = True,
    kind: str = MAPS[0],
    zoo_path: Path | None = None,
    device: str = "cpu",
) -> None:
    """Serve the page of a zoo or a run on 127.0.0.1 until Ctrl-C; `report` is called once it can be opened.

    Raises:
        UsageError: Bokeh is not installed, or the port is in use.
        NetspaceError: The run or zoo cannot be read.
    """
    if importlib.util.find_spec("bokeh") is None:
        raise UsageError('the page takes the package bokeh: `pip install "netspace[page]"`')
    from netspace.commands.explore_page import ADDRESS, open_browser, start_server

    if not 0 <= port < 1 << 16:
        raise UsageError(f"--port was expected to be 0 (any free one) to 65535, found {port}")
    with opened(path, zoo_path, device) as members:
        explorer = Explorer(members, kind)
        server = start_server(explorer, port)
        url = f"http://{ADDRESS}:{server.port}/"
        try:
            report(OpenPage(url=url, members=members.count, by=explorer.by, map=kind))
            if browser and not open_browser(url):
                warnings.warn(
                    f"there is no browser that could be started: open {url} in one", NetspaceWarning, stacklevel=2
                )
            previous = signal.signal(
                signal.SIGTERM, lambda *_: server.io_loop.add_callback_from_signal(server.io_loop.stop)
            )
            try:
                server.io_loop.start()
            except KeyboardInterrupt:
                pass  # the way in which it ends
            finally:
                signal.signal(signal.SIGTERM, previous)
        finally:
            server.stop()
