"""Ctrl-C in a training: it ends after the step that it is in, so that a checkpoint can be written."""

from __future__ import annotations

import signal
import sys
import threading
from types import FrameType, TracebackType
from typing import Self


class Stopping:
    """Inside the block a first Ctrl-C is noted in `asked` and the training goes on; a second one interrupts it at once.

    Where Python does not interrupt on Ctrl-C anyway, in other threads and under other handlers, nothing is changed.
    """

    def __init__(self, able: bool = True) -> None:
        """Not `able`: as one of several processes, which would stop at different steps."""
        main = threading.current_thread() is threading.main_thread()
        self.able = able and main and signal.getsignal(signal.SIGINT) is signal.default_int_handler
        self.asked = False

    def __enter__(self) -> Self:
        if self.able:
            signal.signal(signal.SIGINT, self._note)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.able:
            signal.signal(signal.SIGINT, signal.default_int_handler)

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.asked = True
        signal.signal(signal.SIGINT, signal.default_int_handler)
        print("stopping after this step; Ctrl-C again stops at once", file=sys.stderr, flush=True)
