"""What netspace writes to disk and reads back: JSON, YAML, safetensors and torch files, each with a hash of its content.

Reading checks the hash, and the shape of what was read against a pydantic model or another annotation; it runs nothing.
Files without a hash, of other programs or from before, are read as they are. Whatever is wrong with a file is a
`NetspaceError` in one sentence."""

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
from typing import Any, TypeVar

import torch
import yaml
from pydantic import BaseModel, ConfigDict, TypeAdapter, ValidationError
from torch import Tensor

from netspace.errors import NetspaceError, first_line, ran_out
from netspace.files import replacing, write_bytes, write_text

HASH = "netspace_hash"  # the key of the hash in JSON objects and in the metadata of safetensors
SEALED = "netspace_sealed"  # the first entry of JSON objects: what is cut out from the last one on is noticed
MARK = "netspace-sha256:"  # begins that hash
HEAD = "# Written by netspace; the last line has a hash of all lines before it.\n"  # the first line of YAML files
SEAL = "# netspace_hash "  # begins their last line
COMMENT = b"netspace_hash "  # begins the comment of torch's zip files
DIGITS = 64  # of a SHA-256
CLAIM = 1100  # bytes of tensors that a byte of a torch file stands for at most: those of zip's compression
DEPTH = 100  # of lists and groups in a YAML file
NODES = 100_000  # values in a YAML file at most: aliases in aliases are some lines that stand for billions
T = TypeVar("T")


class Record(BaseModel):
    """The base of what is written for later: what other versions add is kept and ignored."""

    model_config = ConfigDict(extra="allow", frozen=True, protected_namespaces=())


def write_json(path: Path, value: Any) -> None:
    """`value` as JSON, atomically; an object gets its hash as a last entry, and as a first one that it has a hash."""
    if isinstance(value, dict):
        value = {SEALED: True, **value}
        value = {**value, HASH: _hash_json(json.loads(json.dumps(value)))}
    write_text(path, json.dumps(value, indent=2, sort_keys=False) + "\n")


def read_json(path: Path, model: type[T]) -> T:
    """What `write_json` wrote, as `model`: a pydantic model, or a type such as dict[str, str]."""
    value = parse_json(read_text(path), str(path))
    if isinstance(value, dict):
        stored = _stored_hash(value, path)
        if (stored is not None or SEALED in value) and stored != _hash_json(value):
            raise NetspaceError(_changed(path, f"the entries {SEALED!r} and {HASH!r}"))
        value.pop(SEALED, None)
    return fitting(value, model, path)


def parse_json(text: str, origin: str) -> Any:
    """The value of a JSON text that stands in `origin`."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise NetspaceError(f"{origin} was expected to be JSON, but it does not parse: {first_line(error)}") from None


def fitting(value: Any, model: type[T], path: Path) -> T:
    """`value`, which stands in the file `path`, as `model`."""
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
    """`text`, which is YAML, atomically, with its hash as a comment in the last line."""
    text = HEAD + text
    write_text(path, f"{text}{SEAL}{hashlib.sha256(text.encode()).hexdigest()}\n")


def read_yaml(path: Path) -> Any:
    """What `write_yaml` wrote, as plain values."""
    text = read_text(path)
    content, seal, found = text.rpartition(SEAL)
    if (seal or text.startswith(HEAD)) and found.strip() != hashlib.sha256(content.encode()).hexdigest():
        raise NetspaceError(_changed(path, "its first and its last line"))
    return parse_yaml(text, str(path))


def without_seal(text: str) -> str:
    """The text that `write_yaml` was given."""
    return text.removeprefix(HEAD).partition(SEAL)[0]


def parse_yaml(text: str, origin: str, kind: str = "YAML") -> Any:
    """The value of a YAML text that stands in `origin`, by the safe loader; `kind` is what was expected there."""
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
        if count > NODES:
            raise NetspaceError(f"{origin} was expected to be {kind} of at most {NODES:,} values, but it holds more")
        if isinstance(node, dict):
            waiting += [*node, *node.values()]
        elif isinstance(node, list | tuple | set):
            waiting += node
    return value


def _check_depth(text: str) -> None:
    """Raises `ValueError` for brackets in brackets beyond `DEPTH`: parsing takes a time that grows with their square."""
    depth = 0
    for bracket in re.findall(r"[\[\]{}]", text):
        depth = depth + 1 if bracket in "[{" else max(0, depth - 1)
        if depth > DEPTH:
            raise ValueError(f"its lists and groups are nested more than {DEPTH} deep")


def read_text(path: Path, errors: str = "strict") -> str:
    """The text of a file; `errors` says what becomes of bytes that are none, as for `bytes.decode`."""
    try:
        return path.read_text(encoding="utf-8", errors=errors)
    except FileNotFoundError:
        raise NetspaceError(f"{path} does not exist") from None
    except (OSError, UnicodeDecodeError) as error:
        raise NetspaceError(f"{path} cannot be read as text: {first_line(error)}") from None


def write_tensors(path: Path, tensors: Mapping[str, Tensor], **notes: str) -> None:
    """Named tensors with notes as safetensors, atomically; their hash is one of the notes."""
    from safetensors.torch import save

    here: dict[str, Tensor] = {}
    storages: set[int] = set()
    for name, value in tensors.items():
        whole = value.detach().cpu().contiguous()
        storage = whole.untyped_storage().data_ptr()
        here[name] = whole.clone() if storage in storages else whole  # safetensors takes no memory that two names share
        storages.add(storage)
    notes.pop(HASH, None)  # of a file that the notes were taken from
    write_bytes(path, _in_order(save(here, metadata={**notes, HASH: hash_named(here, notes)})))


def _in_order(content: bytes) -> bytes:
    """A safetensors file with its notes in order: the library leaves that to chance, so equal files would differ."""
    start = 8 + int.from_bytes(content[:8], "little")
    header = json.loads(content[8:start])
    header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text + content[start:]


def read_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """The tensors and the notes of a safetensors file, of whoever wrote it; the hash is not among the notes."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, "pt") as file:
            notes = dict(file.metadata() or {})
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - no mapping
    except FileNotFoundError:
        raise NetspaceError(f"{path} does not exist") from None
    except (SafetensorError, OSError, RuntimeError, ValueError, TypeError, LookupError, AttributeError) as error:
        raise NetspaceError(
            f"{path} was expected to be a safetensors file, but cannot be read: {first_line(error)}"
        ) from None
    stored = _stored_hash(notes, path)
    if stored is not None and stored != hash_named(tensors, notes):
        raise NetspaceError(_changed(path, f"the note {HASH!r}"))
    return tensors, notes


def write_torch(path: Path, value: Any) -> None:
    """Tensors and plain values by `torch.save`, atomically; the comment of its zip file says their hash."""
    held = io.BytesIO()
    torch.save(value, held)
    content = held.getbuffer()
    length = len(COMMENT) + DIGITS
    content[-2:] = length.to_bytes(2, "little")  # of the comment, which ends a zip file
    with replacing(path) as temporary, open(temporary, "wb") as file:
        file.write(content)
        file.write(COMMENT + hashlib.sha256(content).hexdigest().encode())


def read_torch(path: Path) -> Any:
    """Tensors and plain values of a torch file, of whoever wrote it. Raises `NetspaceError` for anything else."""
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
    if claimed > CLAIM * path.stat().st_size:
        raise NetspaceError(f"{path} claims {claimed:,} bytes of tensors, which its own bytes cannot hold")


def _unpacked(path: Path) -> int:
    """The bytes that a zip file says it unpacks to; 0 for another file, of which torch may know more."""
    return sum(each.file_size for each in _entries(path))


def _entries(path: Path) -> list[zipfile.ZipInfo]:
    """What a zip file says it holds; nothing where it cannot be read."""
    try:
        with zipfile.ZipFile(path) as archive:
            return archive.infolist()
    except Exception:  # of damaged files zipfile raises UnicodeDecodeError, NotImplementedError and struct's errors too
        return []


@contextmanager
def going_on_from(path: Path) -> Iterator[None]:
    """A block that takes a checkpoint's values back: those of another kind are told in one sentence."""
    try:
        yield
    except (LookupError, TypeError, ValueError, AttributeError, RuntimeError) as error:
        if ran_out(error):
            raise
        raise NetspaceError(
            f"{path} does not hold what can be gone on from ({first_line(error)}): another version or program wrote it; "
            "delete it to begin anew, or choose another --out"
        ) from None


def _why(path: Path, error: Exception) -> str:
    """What is wrong with a torch file; torch's own text often says how to load it unsafely, which is not repeated."""
    if any(each.filename.endswith("/constants.pkl") for each in _entries(path)):
        return "it is a TorchScript program, of which nothing was run; save `model.state_dict()` alone"
    if type(error).__name__ == "UnpicklingError" or "weights_only" in str(error):
        return "it holds other objects, of which nothing was run, or is damaged; save `model.state_dict()` alone"
    return first_line(error)


def _is_sealed(path: Path) -> bool:
    """Whether a file is as `write_torch` wrote it, or has no hash."""
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
    """All dense tensors in nested values."""
    waiting, seen = [value], set[int]()
    while waiting:
        node = waiting.pop()
        if id(node) in seen:  # a list may hold itself
            continue
        seen.add(id(node))
        if isinstance(node, Tensor):
            if node.layout == torch.strided:
                yield node
        elif isinstance(node, Mapping):
            waiting += node.values()
        elif isinstance(node, list | tuple | set):
            waiting += node


def _hash_json(value: Mapping[str, Any]) -> str:
    return MARK + hashlib.sha256(json.dumps(value, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def hash_named(tensors: Mapping[str, Tensor], notes: Mapping[str, str]) -> str:
    """SHA-256 of named tensors and notes: names, types, shapes and bytes."""
    digest = hashlib.sha256(json.dumps(dict(notes), sort_keys=True).encode())
    for name in sorted(tensors):
        value = tensors[name]
        digest.update(json.dumps([name, str(value.dtype), list(value.shape)]).encode())
        digest.update(value.contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return MARK + digest.hexdigest()


def _stored_hash(entries: dict[str, Any], path: Path) -> str | None:
    """The hash among entries, which is taken out; None where there is none. One under another name is a damaged one."""
    names = [name for name, value in entries.items() if isinstance(value, str) and value.startswith(MARK)]
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
    """SHA-256 of tensors' shapes, types and bytes, in order."""
    import hashlib

    digest = hashlib.sha256()
    for tensor in tensors:
        digest.update(f"{tuple(tensor.shape)}{tensor.dtype}".encode())
        flat = tensor.detach().cpu().contiguous().reshape(-1)
        digest.update(flat.view(torch.uint8).numpy().tobytes())  # as bytes: NumPy knows no bfloat16
    return digest.hexdigest()
