"""The mistakes a user can make, each told in one sentence.

A message says what was asked, what was expected, what was found and what to do. The command line prints
it without a traceback and exits with `exit_code`. What cannot happen is an `assert`, not one of these.
"""

from __future__ import annotations

import errno
from collections.abc import Iterable
from difflib import get_close_matches

NO_MEMORY = (
    "out of memory",  # CUDA
    "allocate memory",  # torch's allocator on a CPU
    "not enough memory",
    "bad_alloc",  # C++
    "could not create a primitive",  # oneDNN, which says so where it finds no memory
)  # words of errors that say so


class NetspaceError(Exception):
    """Something asked for could not be done: a broken file, a missing data set, a diverged run."""

    exit_code = 1


class Stopped(NetspaceError):
    """Ctrl-C ended work, and what was reached is saved."""

    exit_code = 130  # as shells have it: 128 and the number of the signal


class UsageError(NetspaceError):
    """The request itself is wrong: an unknown setting, name or combination of options."""

    exit_code = 2


def unknown(kind: str, name: object, choices: Iterable[object], hint: str = "") -> UsageError:
    """The error for a `name` that is not one of `choices`; shows the nearest choice and all of them.

    >>> str(unknown("architecture", "resnet9", ["resnet8", "vanillacnn"]))
    "unknown architecture 'resnet9': did you mean 'resnet8'? There are: resnet8, vanillacnn."
    """
    names = [str(choice) for choice in choices]
    near = get_close_matches(str(name), names, n=1)
    ask = f" did you mean {near[0]!r}?" if near else ""
    there = f" There are: {', '.join(names)}." if names else " There are none."
    return UsageError(f"unknown {kind} {str(name)!r}:{ask}{there}{' ' + hint if hint else ''}")


def first_line(error: BaseException) -> str:
    """What an error says, in one line; its class where it says nothing."""
    return next(iter(str(error).strip().splitlines()), "") or type(error).__name__


def printable(text: str, lines: bool = True) -> str:
    r"""A text as a terminal shows it and never obeys it: names in files may hold escape codes and other control characters.

    >>> print(printable("zoo\x1b[2J"))
    zoo\x1b[2J

    With `lines` line ends stay what they are.
    """
    kept = ("\n", "\t") if lines else ()
    shown = (each if each in kept or each.isprintable() else repr(each)[1:-1] for each in text)
    return "".join(shown)


def ran_out(error: BaseException) -> bool:
    """Whether an error says that memory ran out: torch has a class for that on a GPU, on a CPU its text alone says so."""
    if isinstance(error, MemoryError) or (isinstance(error, OSError) and error.errno == errno.ENOMEM):
        return True
    if type(error).__name__ == "OutOfMemoryError":  # torch's, whatever it says
        return True
    return isinstance(error, RuntimeError) and any(words in str(error).lower() for words in NO_MEMORY)
