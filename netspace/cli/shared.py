"""What all commands share: their options, and how a command runs and ends, alone or as one of several processes."""

from __future__ import annotations

import contextlib
import json
import os
import sys
import threading
import time
import warnings
from collections.abc import Sequence
from functools import partial
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer

from netspace.cli.output import output_is_closed, write
from netspace.cli.ranges import MAX_DEPTH, MAX_SIDE, MAX_STEPS, MAX_WIDTH, real, whole
from netspace.errors import NetspaceError, NetspaceWarning, OutputClosed, UsageError, first_line, printable, ran_out

if TYPE_CHECKING:
    from netspace.archs import ArchConfig
    from netspace.compression.originals import Pictures

STOPPED = (
    "stopped: finished files are kept. The same command resumes a zoo build; with --resume, train, compress fit, morph fit and "
    "optimize resume from their last checkpoint; any other command starts again from the beginning"
)
INTERRUPTED = 130  # the exit code of Ctrl-C in shells
OBJECT = """a JSON object, such as '{"num_classes": 10}'"""
MAX_INPUT, MAX_DIGITS = 10**8, 12  # values of an input of --input-shape, digits of one of its sides
PATIENCE = 15.0  # seconds for rank 0 to report an error too: a launcher ends all processes when one has ended

Network = "A zoo member (resnet8/0007), best, worst, best:ARCH, worst:ARCH, a state-dict file, or a latent file."
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object on standard output.")]
Set = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Change a setting of the recipe; may be repeated."),
]
Device = Annotated[str | None, typer.Option(help="cpu, cuda, cuda:1, ...; default: a GPU if there is one.")]
RunOption = Annotated[Path | None, typer.Option("--run", help="A run folder; default: the newest in runs/.")]
RunArgument = Annotated[Path | None, typer.Argument(metavar="RUN", help="A run folder; default: the newest in runs/.")]
SameRun = Annotated[Path | None, typer.Option("--run", help="The same as RUN.")]
ZooOption = Annotated[Path | None, typer.Option("--zoo", help="The zoo of the run, if it has moved.")]
Refine = Annotated[
    int | None,
    whole(
        1,
        MAX_STEPS,
        "Refine latents by so many steps of gradient descent on what the networks output for training inputs; 200 is a good start.",
        metavar="STEPS",
    ),
]
Width = Annotated[float | None, real(0, MAX_WIDTH, "Width factor of --arch, other than the space's own.")]
Depth = Annotated[int | None, whole(1, MAX_DEPTH, "Depth of --arch (such as 14 with --arch resnet).")]
Trust = Annotated[
    list[str] | None,
    typer.Option(
        "--trust-arch", metavar="MODULE:FACTORY", help="Allow this architecture outside netspace to be imported."
    ),
]
Kwargs = Annotated[
    str | None, typer.Option(metavar="JSON", help="Keyword arguments of --arch's factory, as a JSON object.")
]

ModelZoo = Annotated[
    Path | None, typer.Option("--zoo", help="The zoo of the member, or the zoo that defines the task of a file.")
]
Arch = Annotated[
    str | None,
    typer.Option(
        metavar="NAME", help="The architecture of a state-dict file: a name, or module:factory (with --trust-arch)."
    ),
]
Key = Annotated[
    str | None,
    typer.Option(metavar="NAME", help="The state dict to read from a MODEL checkpoint that has several, such as ema."),
]
Shape = Annotated[
    str | None, typer.Option("--input-shape", metavar="C,H,W", help="Shape of one input, where no task says it.")
]


def keyword_arguments(text: str | None) -> dict[str, Any]:
    """Parse the value of --kwargs. Raises `UsageError` if it is not a JSON object."""
    try:
        given = json.loads(text or "{}")
    except (ValueError, RecursionError) as error:
        raise UsageError(f"--kwargs was expected to be {OBJECT}, but {text!r} is not: {error}") from None
    if not isinstance(given, dict):
        raise UsageError(f"--kwargs was expected to be {OBJECT}, but {text!r} is not one")
    return given


def named_arch(name: str | None, kwargs: str | None) -> ArchConfig | None:
    """Return the architecture of --arch with its --kwargs. Raises `UsageError` for --kwargs alone."""
    from netspace.archs import ArchConfig
    from netspace.config import validate

    if name is None:
        if kwargs is not None:
            raise UsageError("--kwargs are those of --arch: give --arch too")
        return None
    return validate(ArchConfig, {"arch": name, "kwargs": keyword_arguments(kwargs)}, "--kwargs")


def parse_shape(text: str | None) -> tuple[int, ...] | None:
    """Parse the value of --input-shape. Raises `UsageError` unless it is whole numbers of at most `MAX_INPUT` values together."""
    if text is None:
        return None
    sides = text.split(",")
    if not all(side.strip().isdecimal() and side.strip("0 ") for side in sides):
        raise UsageError(
            f"--input-shape {text!r} was expected to be whole numbers with commas between, as in 3,224,224"
        )
    shape = tuple(int(side[:MAX_DIGITS]) for side in map(str.strip, sides))
    if prod(shape) > MAX_INPUT or max(map(len, sides)) > MAX_DIGITS:
        raise UsageError(
            f"--input-shape {text[:80]!r} was expected to have at most {MAX_INPUT:,} values: give a smaller one"
        )
    return shape


def run_folder(run: Path | None, same: Path | None = None) -> Path:
    """Return the run given as an argument or as `--run`, else the newest. Raises `UsageError` if both are given."""
    from netspace.run_folder import newest_run

    if run is not None and same is not None:
        raise UsageError(f"the run was given twice, as {run} and as --run {same}: give it once")
    return run or same or newest_run()


def pick(device: str | None) -> str:
    """Return the name of the given device, else a GPU if there is one, else 'cpu'."""
    from netspace.hardware import pick_device

    return str(pick_device(device or "auto"))


def trusting(names: Sequence[str] | None) -> None:
    """Allow this process to import the architectures that the user named."""
    if names:
        from netspace import archs

        archs.trust(*(name for name in names if ":" in name))


def run(command: Any) -> NoReturn:
    """Run a click command and exit: 0 done, 1 failed, 2 bad usage, 130 Ctrl-C, 141 nobody reads the output.

    A mistake prints one sentence, no traceback.
    """
    threading.excepthook = _thread_failed
    warnings.filterwarnings(
        "ignore", "There is a performance drop"
    )  # of torch's vmap; the faster way is timed and taken
    warnings.showwarning = partial(_show_warning, warnings.showwarning)
    try:
        code = command.main(prog_name="netspace", standalone_mode=False)
    except OutputClosed as error:
        leave(error.exit_code)
    except NetspaceError as error:
        fail(str(error), error.exit_code)
    except KeyboardInterrupt:
        fail(STOPPED, INTERRUPTED)
    except SystemExit as stop:
        if isinstance(stop.__context__, BrokenPipeError):  # click leaves so, whatever pipe it was
            if output_is_closed():
                leave(OutputClosed.exit_code)
            fail(f"a file could not be read or written: {stop.__context__.strerror}", 1)
        raise
    except Exception as error:
        if ran_out(error):
            fail(f"memory ran out: {first_line(error)[:300]}; take fewer at once (see the recipe's settings)", 1)
        if isinstance(error, OSError):
            what = error.filename or "a file"
            fail(f"{what} could not be read or written: {error.strerror or error}", 1)
        if isinstance(error.__cause__, KeyboardInterrupt):  # typer's own, in some versions
            fail(STOPPED, INTERRUPTED)
        if type(error).__name__ in ("Abort", "NoArgsIsHelpError"):
            leave(getattr(error, "exit_code", 1))
        message = getattr(error, "format_message", None)
        if message is not None:  # click's own: an unknown option, a missing argument
            fail(
                f"{message().rstrip('.')}; see `{getattr(getattr(error, 'ctx', None), 'command_path', 'netspace')} --help`",
                2,
            )
        raise
    if code == INTERRUPTED:  # typer's word for Ctrl-C, in other versions
        fail(STOPPED, INTERRUPTED)
    leave(code if isinstance(code, int) else 0)


def _show_warning(otherwise: Any, message: Warning | str, category: type[Warning], *where: Any) -> None:
    """Print a warning of netspace as one line; leave others to Python."""
    if issubclass(category, NetspaceWarning):
        print(f"warning: {printable(str(message), lines=False)}", file=sys.stderr, flush=True)
    else:
        otherwise(message, category, *where)


def fail(sentence: str, code: int) -> NoReturn:
    """Print one sentence and exit; with --json, rank 0 also prints it as JSON."""
    first = not int(os.environ.get("RANK", "0"))
    if "--json" in sys.argv and first:
        with contextlib.suppress(OutputClosed):
            write(json.dumps({"error": sentence}))
    print(f"netspace: {printable(sentence, lines=False)}", file=sys.stderr, flush=True)
    if not first and sentence != STOPPED:
        time.sleep(PATIENCE)
    leave(code)


def leave(code: int) -> NoReturn:
    """Exit; under a process launcher, without Python's own shutdown.

    Threads of gloo outlive their process group. One that frees a tensor while Python shuts down aborts the process
    (pytorch/pytorch#179291), and the launcher then reports the whole run as failed.
    """
    if "WORLD_SIZE" in os.environ:
        if not code and "torch" in sys.modules:
            from netspace import distributed as ranks

            ranks.end()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    sys.exit(code)


def _thread_failed(failure: threading.ExceptHookArgs) -> None:
    """Ignore a full disk in a background writer (TensorBoard's): the command itself reports it."""
    if not isinstance(failure.exc_value, OSError):
        threading.__excepthook__(failure)


Images = Annotated[
    Path | None,
    typer.Option(metavar="FOLDER", help="Images on which both networks are compared; no labels are needed."),
]
Normalise = Annotated[
    str | None,
    typer.Option(
        metavar="HOW",
        help="Normalisation of the images: imagenet (its mean and standard deviation, the default), none (0 to 1), 0-255, or "
        "MEAN/STD as in 0.5,0.5,0.5/0.25.",
    ),
]
Size = Annotated[int, whole(1, MAX_SIDE, "Height and width to which the images are resized, in pixels.")]


def parse_pictures(images: Path | None, size: int, normalise: str | None) -> Pictures | None:
    """Return the pictures of `--images`; None if there are none. Raises `UsageError` for options that do not go together."""
    from netspace.compression.originals import Pictures
    from netspace.errors import UsageError
    from netspace.tasks.readers import IMAGENET, normalisation

    by = IMAGENET if normalise is None else normalisation(normalise)
    if images is None and normalise is not None:
        raise UsageError("--normalise is about the pictures of --images: give --images too")
    return None if images is None else Pictures(images, size, by)
