"""Errors for mistakes that a user can make, each one sentence.

A message says what was asked, expected and received, and what to do. The command line prints it without a traceback and
exits with `exit_code`. A state that cannot occur is an `assert`, not one of these.
"""

from __future__ import annotations

import errno
from collections.abc import Iterable
from difflib import get_close_matches
from pathlib import Path

MAX_CHOICES = 24  # that an error lists
NO_MEMORY = (
    "out of memory",  # CUDA
    "allocate memory",  # torch's allocator on a CPU
    "not enough memory",
    "bad_alloc",  # C++
    "could not create a primitive",  # oneDNN, when an allocation fails
)  # parts of messages of errors that mean it


class NetspaceError(Exception):
    """A request could not be carried out: a damaged file, a missing data set, a diverged run."""

    exit_code = 1


class Stopped(NetspaceError):
    """Work was stopped by Ctrl-C after its state was saved."""

    exit_code = 130  # as in shells: 128 plus the number of the signal


class OutputClosed(NetspaceError):
    """Nobody reads standard output any more, as after `netspace zoo list z.h5 | head -1`: the command ends without a word."""

    exit_code = 141  # as shells report a program that SIGPIPE ended: 128 plus the number of the signal


class NetspaceWarning(UserWarning):
    """A result is less sure than usual, and says why; the command line prints it as one line."""


class UsageError(NetspaceError):
    """The request itself is invalid: an unknown setting, name or combination of options."""

    exit_code = 2


def unknown(kind: str, name: object, choices: Iterable[object], hint: str = "") -> UsageError:
    """Return the error for a `name` that is not one of `choices`; it shows the closest choice, and the first of all.

    >>> str(unknown("architecture", "resnet9", ["resnet8", "vanillacnn"]))
    "unknown architecture 'resnet9': did you mean 'resnet8'? There are: resnet8, vanillacnn."
    """
    names = [str(choice) for choice in choices]
    near = get_close_matches(str(name), names, n=1)
    ask = f" did you mean {near[0]!r}?" if near else ""
    more = f" and {len(names) - MAX_CHOICES} more" if len(names) > MAX_CHOICES else ""
    there = f" There are: {', '.join(names[:MAX_CHOICES])}{more}." if names else " There are none."
    return UsageError(f"unknown {kind} {str(name)!r}:{ask}{there}{' ' + hint if hint else ''}")


def absent(path: Path) -> str:
    """Return what stands at the path where a file was expected: that it is a folder, or that it does not exist.

    >>> absent(Path("nowhere/net.safetensors"))
    'nowhere/net.safetensors does not exist'
    """
    return f"{path} is a folder, not a file" if path.is_dir() else f"{path} does not exist"


def first_line(error: BaseException) -> str:
    """Return the first line of an error's message, or the name of its class if it has none."""
    return next(iter(str(error).strip().splitlines()), "") or type(error).__name__


def printable(text: str, lines: bool = True) -> str:
    r"""Return a text with control characters escaped, so that names from files cannot control the terminal.

    >>> print(printable("zoo\x1b[2J"))
    zoo\x1b[2J

    With `lines`, line breaks and tabs are kept.
    """
    allowed = ("\n", "\t") if lines else ()
    return "".join(each if each in allowed or each.isprintable() else repr(each)[1:-1] for each in text)


def ran_out(error: BaseException) -> bool:
    """Return whether an error means that memory ran out. torch has a class for that on GPUs; on CPUs only the message tells."""
    if isinstance(error, MemoryError) or (isinstance(error, OSError) and error.errno == errno.ENOMEM):
        return True
    if type(error).__name__ == "OutOfMemoryError":  # torch's, whatever its message
        return True
    return isinstance(error, RuntimeError) and any(part in str(error).lower() for part in NO_MEMORY)
