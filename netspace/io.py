"""Files that netspace writes and reads: JSON, YAML, safetensors and torch files, each with a hash of its content.

Reading checks the hash, and validates the content by a pydantic model or another annotation; it runs no code. Files without a
hash, of other programs or older versions, are read as they are. Every reader raises `NetspaceError`, in one sentence, for
whatever is wrong with a file."""

from __future__ import annotations

import hashlib
import io
import json
import re
import warnings
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import yaml
from pydantic import BaseModel, ConfigDict, TypeAdapter, ValidationError

from netspace.errors import NetspaceError, first_line, ran_out
from netspace.files import replacing, write_bytes, write_text

if TYPE_CHECKING:
    from torch import Tensor  # torch is imported by functions that use it: text and tables are read without

HASH = "netspace_hash"  # the key of the hash in JSON objects and in the metadata of safetensors
SEALED = "netspace_sealed"  # the first entry of JSON objects with a hash, so that a lost last entry is noticed
HASH_PREFIX = "netspace-sha256:"
YAML_HEAD = "# Written by netspace; the last line has a hash of all lines before it.\n"  # the first line
YAML_SEAL = "# netspace_hash "  # begins the last line
COMMENT = b"netspace_hash "  # begins the comment of torch's zip files
DIGITS = 64  # of a SHA-256
MAX_RATIO = 1100  # bytes of tensors for a byte of a torch file: that of zip's compression
MAX_DEPTH = 100  # of lists and groups in a YAML file
MAX_NODES = 100_000  # values in a YAML file: aliases of aliases are some lines that stand for billions
T = TypeVar("T")


class Record(BaseModel):
    """The base of all records on disk: fields that other versions add are kept and ignored."""

    model_config = ConfigDict(extra="allow", frozen=True, protected_namespaces=())


def write_json(path: Path, value: Any) -> None:
    """Write `value` as JSON, atomically; an object gets its hash as a last entry, and `SEALED` as a first one."""
    if isinstance(value, dict):
        value = {SEALED: True, **value}
        value = {**value, HASH: _hash_json(json.loads(json.dumps(value)))}
    write_text(path, json.dumps(value, indent=2, sort_keys=False) + "\n")


def read_json(path: Path, model: type[T]) -> T:
    """Read what `write_json` wrote, as `model`: a pydantic model, or a type such as dict[str, str].

    Raises `NetspaceError` if the file cannot be read, is not JSON, does not fit its hash or is no `model`.
    """
    value = parse_json(read_text(path), str(path))
    if isinstance(value, dict):
        stored = _stored_hash(value, path)
        if (stored is not None or SEALED in value) and stored != _hash_json(value):
            raise NetspaceError(_changed(path, f"the entries {SEALED!r} and {HASH!r}"))
        value.pop(SEALED, None)
    return validated(value, model, path)


def parse_json(text: str, origin: str) -> Any:
    """Return the value of a JSON text. Raises `NetspaceError`, naming its file `origin`, if it does not parse."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise NetspaceError(f"{origin} was expected to be JSON, but it does not parse: {first_line(error)}") from None


def validated(value: Any, model: type[T], path: Path) -> T:
    """Return a value of the file `path` as `model`. Raises `NetspaceError` naming the first entry that does not fit."""
    try:
        return TypeAdapter(model).validate_python(value)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        where = ".".join(str(part) for part in first["loc"])
        what = f"{where!r} in it: " if where else ""
        raise NetspaceError(
            f"{path} does not hold what netspace writes there: {what}{first['msg']}; it was damaged or changed"
        ) from None


def write_yaml(path: Path, text: str) -> None:
    """Write a YAML text, atomically, with its hash as a comment in the last line."""
    text = YAML_HEAD + text
    write_text(path, f"{text}{YAML_SEAL}{hashlib.sha256(text.encode()).hexdigest()}\n")


def read_yaml(path: Path) -> Any:
    """Read what `write_yaml` wrote, as plain values.

    Raises `NetspaceError` if the file cannot be read, does not fit its hash or is not YAML.
    """
    text = read_text(path)
    content, seal, stored = text.rpartition(YAML_SEAL)
    if (seal or text.startswith(YAML_HEAD)) and stored.strip() != hashlib.sha256(content.encode()).hexdigest():
        raise NetspaceError(_changed(path, "its first and its last line"))
    return parse_yaml(text, str(path))


def without_seal(text: str) -> str:
    """Return the text that `write_yaml` was given."""
    return text.removeprefix(YAML_HEAD).partition(YAML_SEAL)[0]


def parse_yaml(text: str, origin: str, kind: str = "YAML") -> Any:
    """Return the value of a YAML text, by the safe loader; errors say that `origin` was expected to be `kind`.

    Raises `NetspaceError` if it does not parse, is nested too deep, or holds more than `MAX_NODES` values.
    """
    try:
        _check_depth(text)
        value = yaml.safe_load(text)
    except (
        yaml.YAMLError,
        ValueError,
        TypeError,
        LookupError,
        AttributeError,
        ArithmeticError,
        RecursionError,
    ) as error:
        why = " ".join(str(error).split()) or type(error).__name__
        raise NetspaceError(f"{origin} was expected to be {kind}, but it does not parse: {why}") from None
    waiting, count = [value], 0
    while waiting:
        node = waiting.pop()
        count += 1
        if count > MAX_NODES:
            raise NetspaceError(
                f"{origin} was expected to be {kind} of at most {MAX_NODES:,} values, but it holds more"
            )
        if isinstance(node, dict):
            waiting += [*node, *node.values()]
        elif isinstance(node, list | tuple | set):
            waiting += node
    return value


def _check_depth(text: str) -> None:
    """Raise `ValueError` for brackets nested beyond `MAX_DEPTH`: parsing takes a time that grows with their square."""
    depth = 0
    for bracket in re.findall(r"[\[\]{}]", text):
        depth = depth + 1 if bracket in "[{" else max(0, depth - 1)
        if depth > MAX_DEPTH:
            raise ValueError(f"its lists and groups are nested more than {MAX_DEPTH} deep")


def read_text(path: Path, errors: str = "strict") -> str:
    """Read a text file; `errors` is that of `bytes.decode`. Raises `NetspaceError` if it is missing or is not text."""
    try:
        return path.read_text(encoding="utf-8", errors=errors)
    except FileNotFoundError:
        raise NetspaceError(f"{path} does not exist") from None
    except (OSError, UnicodeDecodeError) as error:
        raise NetspaceError(f"{path} cannot be read as text: {first_line(error)}") from None


def write_tensors(path: Path, tensors: Mapping[str, Tensor], **metadata: str) -> None:
    """Write named tensors with metadata as safetensors, atomically; their hash is added to the metadata."""
    from safetensors.torch import save

    stored: dict[str, Tensor] = {}
    storages: set[int] = set()
    for name, value in tensors.items():
        whole = value.detach().cpu().contiguous()
        storage = whole.untyped_storage().data_ptr()
        stored[name] = (
            whole.clone() if storage in storages else whole
        )  # safetensors refuses memory that two names share
        storages.add(storage)
    metadata.pop(HASH, None)  # of a file that the metadata were taken from
    write_bytes(path, _in_order(save(stored, metadata={**metadata, HASH: hash_named(stored, metadata)})))


def _in_order(content: bytes) -> bytes:
    """Return a safetensors file with its metadata in order: the library's order is random, so equal files would differ."""
    start = 8 + int.from_bytes(content[:8], "little")
    header = json.loads(content[8:start])
    header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text + content[start:]


def read_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Read the tensors and the metadata of a safetensors file, whoever wrote it; the hash is not in the metadata.

    Raises `NetspaceError` if the file is missing, cannot be read, or does not fit its hash.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, "pt") as file:
            metadata = dict(file.metadata() or {})
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - no mapping
    except FileNotFoundError:
        raise NetspaceError(f"{path} does not exist") from None
    except (SafetensorError, OSError, RuntimeError, ValueError, TypeError, LookupError, AttributeError) as error:
        raise NetspaceError(
            f"{path} was expected to be a safetensors file, but cannot be read: {first_line(error)}"
        ) from None
    stored = _stored_hash(metadata, path)
    if stored is not None and stored != hash_named(tensors, metadata):
        raise NetspaceError(_changed(path, f"the note {HASH!r}"))
    return tensors, metadata


def write_torch(path: Path, value: Any) -> None:
    """Write tensors and plain values by `torch.save`, atomically; their hash is the comment of its zip file."""
    import torch

    buffer = io.BytesIO()
    torch.save(value, buffer)
    content = buffer.getbuffer()
    length = len(COMMENT) + DIGITS
    content[-2:] = length.to_bytes(2, "little")  # of the comment, which ends a zip file
    with replacing(path) as temporary, open(temporary, "wb") as file:
        file.write(content)
        file.write(COMMENT + hashlib.sha256(content).hexdigest().encode())


def read_torch(path: Path) -> Any:
    """Read tensors and plain values of a torch file, whoever wrote it. Raises `NetspaceError` for anything else."""
    import torch

    try:
        if not _is_sealed(path):
            raise NetspaceError(_changed(path, "the comment of its zip file"))
        _check_claims(path, _unpacked(path))
        with warnings.catch_warnings(action="ignore"):  # of pickles that are refused anyway
            value = torch.load(path, weights_only=True, map_location="cpu")
        _check_claims(path, sum(each.numel() * each.element_size() for each in _tensors_in(value)))
    except (NetspaceError, MemoryError):
        raise
    except FileNotFoundError:
        raise NetspaceError(f"{path} does not exist") from None
    except Exception as error:  # torch raises pickle, zip and runtime errors alike
        raise NetspaceError(
            f"{path} was expected to be a torch file of tensors, but it cannot be read safely: {_why(path, error)}"
        ) from None
    return value


def _check_claims(path: Path, claimed: int) -> None:
    if claimed > MAX_RATIO * path.stat().st_size:
        raise NetspaceError(f"{path} claims {claimed:,} bytes of tensors, which its own bytes cannot hold")


def _unpacked(path: Path) -> int:
    """Return the bytes that a zip file claims to unpack to; 0 for another file, which torch may still read."""
    return sum(each.file_size for each in _entries(path))


def _entries(path: Path) -> list[zipfile.ZipInfo]:
    """Return the table of a zip file; empty if it cannot be read."""
    try:
        with zipfile.ZipFile(path) as archive:
            return archive.infolist()
    except Exception:  # of damaged files zipfile raises UnicodeDecodeError, NotImplementedError and struct's errors too
        return []


@contextmanager
def resuming_from(path: Path) -> Iterator[None]:
    """Turn the errors of a block that restores a checkpoint with unexpected values into one sentence.

    Raises `NetspaceError` in their place; an error of memory that ran out stays as it is.
    """
    try:
        yield
    except (LookupError, TypeError, ValueError, AttributeError, RuntimeError) as error:
        if ran_out(error):
            raise
        raise NetspaceError(
            f"{path} does not hold a state that can be resumed ({first_line(error)}): another version or program wrote it; "
            "delete it to begin anew, or choose another --out"
        ) from None


def _why(path: Path, error: Exception) -> str:
    """Return what is wrong with a torch file; torch's own text often advises to load it unsafely, which is not repeated."""
    if any(each.filename.endswith("/constants.pkl") for each in _entries(path)):
        return "it is a TorchScript program, of which nothing was run; save `model.state_dict()` alone"
    if type(error).__name__ == "UnpicklingError" or "weights_only" in str(error):
        return "it holds other objects, of which nothing was run, or is damaged; save `model.state_dict()` alone"
    return first_line(error)


def _is_sealed(path: Path) -> bool:
    """Return whether a file is as `write_torch` wrote it, or has no hash."""
    length = len(COMMENT) + DIGITS
    with open(path, "rb") as file:
        left = file.seek(0, io.SEEK_END) - length
        if left < 0:
            return True
        file.seek(left)
        comment = file.read()
        if not comment.startswith(COMMENT):
            return True
        digest = hashlib.sha256()
        file.seek(0)
        while piece := file.read(min(left, 1 << 20)):
            digest.update(piece)
            left -= len(piece)
    return comment[len(COMMENT) :] == digest.hexdigest().encode()


def _tensors_in(value: Any) -> Iterator[Tensor]:
    """Yield all dense tensors in nested values."""
    import torch

    waiting, seen = [value], set[int]()
    while waiting:
        node = waiting.pop()
        if id(node) in seen:  # a list may hold itself
            continue
        seen.add(id(node))
        if isinstance(node, torch.Tensor):
            if node.layout == torch.strided:
                yield node
        elif isinstance(node, Mapping):
            waiting += node.values()
        elif isinstance(node, list | tuple | set):
            waiting += node


def _hash_json(value: Mapping[str, Any]) -> str:
    return HASH_PREFIX + hashlib.sha256(json.dumps(value, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def hash_named(tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> str:
    """Return the SHA-256 of named tensors and metadata: names, types, shapes and bytes."""
    import torch

    digest = hashlib.sha256(json.dumps(dict(metadata), sort_keys=True).encode())
    for name in sorted(tensors):
        value = tensors[name]
        digest.update(json.dumps([name, str(value.dtype), list(value.shape)]).encode())
        digest.update(value.contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return HASH_PREFIX + digest.hexdigest()


def _stored_hash(entries: dict[str, Any], path: Path) -> str | None:
    """Remove the hash from entries and return it; None if there is none. Raises `NetspaceError` if it has another name."""
    names = [name for name, value in entries.items() if isinstance(value, str) and value.startswith(HASH_PREFIX)]
    if HASH not in entries and not names:
        return None
    if names != [HASH]:
        raise NetspaceError(_changed(path, f"the entry {HASH!r}"))
    return str(entries.pop(HASH))


def _changed(path: Path, where: str) -> str:
    return (
        f"{path} is not as netspace wrote it: its hash does not match, so it was damaged or changed; make it again, or, "
        f"where the change was meant, delete {where}"
    )


def hash_tensors(*tensors: Tensor) -> str:
    """Return the SHA-256 of tensors' shapes, types and bytes, in order."""
    import torch

    digest = hashlib.sha256()
    for tensor in tensors:
        digest.update(f"{tuple(tensor.shape)}{tensor.dtype}".encode())
        flat = tensor.detach().cpu().contiguous().reshape(-1)
        digest.update(flat.view(torch.uint8).numpy().tobytes())  # as bytes: NumPy knows no bfloat16
    return digest.hexdigest()
