"""What names the network of a fit: written down when it begins, and taken from there when it is resumed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from netspace.archs import ArchConfig
from netspace.config import load
from netspace.errors import UsageError
from netspace.networks.state_dict import FILES
from netspace.run_folder import RunFolder
from netspace.zoo import Zoo


def origin_of(
    model: str, zoo_path: Path | None, arch: ArchConfig | None, input_shape: tuple[int, ...] | None, key: str | None
) -> dict[str, Any]:
    """Return what names the network of a fit, for its provenance."""
    path = Path(model)
    origin: dict[str, Any] = {"model": str(path.resolve()) if path.suffix in FILES else model}
    if arch is not None:
        origin["arch"] = arch.model_dump(mode="json")
    if zoo_path is not None:
        origin |= {"zoo": str(zoo_path.resolve()), "zoo_hash": _content_hash(zoo_path)}
    return origin | {name: value for name, value in (("input_shape", input_shape), ("key", key)) if value is not None}


def begun_with(
    folder: RunFolder,
    resume: bool,
    zoo_path: Path | None,
    arch: ArchConfig | None,
    input_shape: tuple[int, ...] | None,
    key: str | None,
) -> tuple[Path | None, ArchConfig | None, tuple[int, ...] | None, str | None]:
    """Return zoo, architecture, input shape and key of a fit; of a resumed one, those that are not given are as it was begun.

    A folder that an earlier version began, without a provenance, says nothing of them.

    Raises:
        UsageError: a resumed fit was begun with others, or its zoo has another content now.
        NetspaceError: the zoo that it was begun with cannot be read.
    """
    if not (resume and folder.begun and (folder.path / "provenance.json").exists()):
        return zoo_path, arch, input_shape, key
    before = folder.origin
    given = {
        "--arch": None if arch is None else arch.model_dump(mode="json"),
        "--input-shape": input_shape,
        "--key": key,
    }
    begun = {"--arch": before.arch, "--input-shape": before.input_shape, "--key": before.key}
    again = f"resume it with its own (`{folder.command}`), or choose another --out"
    for option, value in given.items():
        if value is not None and value != begun[option]:
            first = "without one" if begun[option] is None else f"with {begun[option]!r}"
            raise UsageError(f"{folder.path} was begun {first}, and {option} is {value!r} now: {again}")
    if zoo_path is None and before.zoo is not None:
        zoo_path = Path(before.zoo)
    if zoo_path is not None and _content_hash(zoo_path) != before.zoo_hash:
        first = "without a zoo" if before.zoo is None else f"with the zoo {before.zoo} as it was then"
        raise UsageError(f"{folder.path} was begun {first}, and {zoo_path} has another content: {again}")
    arch = load(ArchConfig, before.arch) if arch is None and before.arch is not None else arch
    return zoo_path, arch, input_shape or before.input_shape, key or before.key


def _content_hash(zoo_path: Path) -> str:
    with Zoo(zoo_path) as zoo:
        return zoo.content_hash
