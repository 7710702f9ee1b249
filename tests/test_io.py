"""What is written is read back with its hash checked; whatever is wrong with a file is one sentence."""

from __future__ import annotations

import json
import math
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from netspace.errors import NetspaceError
from netspace.io import (
    HASH,
    SEALED,
    Record,
    read_json,
    read_tensors,
    read_torch,
    read_yaml,
    resuming_from,
    write_json,
    write_tensors,
    write_torch,
    write_yaml,
)
from netspace.run_folder import Metrics, read_metrics

DEEP = 5000


class Held(Record):
    name: str
    rows: list[int]


def test_json_is_read_as_its_model_and_others_entries_are_kept(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    value = {"name": "é", "rows": [1, 2], "more": {"1": [None, 0.1, math.inf]}}
    write_json(path, value)
    assert read_json(path, dict[str, Any]) == value
    stored = read_json(path, Held)
    assert stored.rows == [1, 2] and stored.model_extra == {"more": {"1": [None, 0.1, math.inf]}}
    write_json(path, {2: "two", 10: "ten"})  # keys become texts
    assert read_json(path, dict[str, str]) == {"2": "two", "10": "ten"}
    write_json(path, [1, 2])
    assert json.loads(path.read_text()) == read_json(path, list[int]) == [1, 2]


JSON: dict[str, tuple[bytes, str]] = {
    "cut": (b'{"name": "a", "ro', "was expected to be JSON, but it does not parse: "),
    "empty": (b"", "was expected to be JSON, but it does not parse: "),
    "of another type": (b"[1, 2]", "does not hold what netspace writes there: Input should be "),
    "deep": (b"[" * DEEP + b"]" * DEEP, "was expected to be JSON, but it does not parse: "),
    "deep objects": (b'{"a":' * DEEP + b"1" + b"}" * DEEP, "was expected to be JSON, but it does not parse: "),
    "bad bytes": (b'{"name": "\xff\xfe"}', "cannot be read as text: "),
    "without an entry": (b'{"name": "a"}', "does not hold what netspace writes there: 'rows' in it: Field required"),
    "of other entries": (b'{"name": "a", "rows": [1, "b"]}', "'rows.1' in it: Input should be a valid integer"),
    "of huge numbers": (b'{"name": "a", "rows": [' + b"9" * 9000 + b"]}", "was expected to be JSON, but it does not "),
}


@pytest.mark.parametrize("kind", sorted(JSON))
def test_json_that_is_not_as_it_should_be(tmp_path: Path, kind: str) -> None:
    content, why = JSON[kind]
    (tmp_path / "a.json").write_bytes(content)
    with pytest.raises(NetspaceError) as caught:
        read_json(tmp_path / "a.json", Held)
    assert why in str(caught.value) and "\n" not in str(caught.value) and len(str(caught.value)) < 500


YAML: dict[str, bytes] = {
    "deep": b"[" * DEEP + b"]" * DEEP,
    "bad bytes": b"a: \xff\xfe",
    "cut": b"a: [1, 2",
    "a date that is none": b"a: 2001-99-99",
    "a number that is none": b"a: !!int x",
    "a truth that is none": b"a: !!bool x",
    "a key that is a list": b"? [1]\n: 2",
    "lines that stand for billions": b"a0: &a0 [x, x]\n"
    + b"\n".join(b"a%d: &a%d [*a%d, *a%d]" % (i + 1, i + 1, i, i) for i in range(40)),
    "a list in itself": b"a: &a [*a]",
    "an object": b"a: !!python/object/apply:os.mkdir [ran]",
}


@pytest.mark.parametrize("kind", sorted(YAML))
def test_yaml_that_is_not_as_it_should_be(tmp_path: Path, kind: str) -> None:
    (tmp_path / "a.yaml").write_bytes(YAML[kind])
    with pytest.raises(NetspaceError, match=r"a\.yaml (was expected to be YAML|cannot be read as text)") as caught:
        read_yaml(tmp_path / "a.yaml")
    assert "\n" not in str(caught.value) and not Path("ran").exists()


def tensors(path: Path) -> None:
    stored = {"w": torch.arange(12.0).view(3, 4), "b": torch.ones(3, dtype=torch.bfloat16), "n": torch.tensor(7)}
    write_tensors(path, stored, arch="resnet8", settings="{}")


def plain(value: Any) -> Any:
    if isinstance(value, torch.Tensor):
        return value.dtype, tuple(value.shape), value.float().tolist()
    if isinstance(value, dict):
        return {key: plain(inner) for key, inner in value.items()}
    return [plain(inner) for inner in value] if isinstance(value, list | tuple) else value


FILES: dict[str, tuple[Callable[[Path], None], Callable[[Path], Any]]] = {
    "a.safetensors": (tensors, lambda path: plain(read_tensors(path))),
    "a.pt": (
        lambda path: write_torch(path, {"model": {"w": torch.arange(12.0)}, "step": 4, "score": (1.5,)}),
        lambda path: plain(read_torch(path)),
    ),
    "a.json": (
        lambda path: write_json(path, {"zoo": "z.h5", "rows": [1, 2.5]}),
        lambda path: read_json(path, dict[str, Any]),
    ),
    "a.yaml": (lambda path: write_yaml(path, "seed: 3\nname: tiny\n"), read_yaml),
}


@pytest.mark.parametrize("name", sorted(FILES))
def test_a_flipped_bit_is_refused_or_changes_nothing(tmp_path: Path, name: str) -> None:
    write, read = FILES[name]
    path = tmp_path / name
    write(path)
    whole, right = path.read_bytes(), read(path)
    write(path)
    assert path.read_bytes() == whole  # the same every time
    refused = 0
    for index in range(len(whole)):
        flipped = bytearray(whole)
        flipped[index] ^= 1 << index % 8
        path.write_bytes(flipped)
        try:
            assert read(path) == right, index
        except NetspaceError as error:
            refused += 1
            assert "\n" not in str(error)
    assert refused > 0.6 * len(whole)


def test_a_value_that_was_changed_is_told_from_damage(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    write_json(path, {"seed": 1})
    path.write_text(path.read_text().replace("1,", "2,", 1))
    with pytest.raises(NetspaceError) as caught:
        read_json(path, dict[str, int])
    assert str(caught.value) == (
        f"{path} is not as netspace wrote it: its hash does not match, so it was damaged or changed; make it again, or, "
        f"where the change was meant, delete the entries '{SEALED}' and '{HASH}'"
    )
    path.write_text('{"seed": 2}')
    assert read_json(path, dict[str, int]) == {"seed": 2}


def test_what_others_wrote_is_read_as_it_is(tmp_path: Path) -> None:
    state = {"w": torch.ones(3)}
    save_file(state, tmp_path / "a.safetensors", metadata={"format": "pt", "settings": "[[not ours"})
    actual, notes = read_tensors(tmp_path / "a.safetensors")
    assert torch.equal(actual["w"], state["w"]) and notes == {"format": "pt", "settings": "[[not ours"}
    torch.save(state, tmp_path / "a.pt")
    assert torch.equal(read_torch(tmp_path / "a.pt")["w"], state["w"])
    (tmp_path / "a.yaml").write_text("seed: 3\n")
    assert read_yaml(tmp_path / "a.yaml") == {"seed": 3}


def test_others_read_what_netspace_writes(tmp_path: Path) -> None:
    for name in ("a.safetensors", "a.pt"):
        FILES[name][0](tmp_path / name)
    assert load_file(tmp_path / "a.safetensors").keys() == {"w", "b", "n"}
    assert torch.load(tmp_path / "a.pt", weights_only=True)["step"] == 4
    with zipfile.ZipFile(tmp_path / "a.pt") as archive:
        assert archive.testzip() is None and archive.comment.startswith(b"netspace_hash ")


def test_tensors_that_the_file_cannot_hold_are_refused(tmp_path: Path) -> None:
    torch.save({"w": torch.zeros(1).expand(100_000, 100_000)}, tmp_path / "a.pt")
    with pytest.raises(
        NetspaceError, match=r"a\.pt claims 40,000,000,000 bytes of tensors, which its own bytes cannot"
    ):
        read_torch(tmp_path / "a.pt")
    write_torch(tmp_path / "a.pt", {"w": torch.ones(4)})
    raw = bytearray((tmp_path / "a.pt").read_bytes()[: -len("netspace_hash ") - 64])
    raw[-2:] = b"\0\0"
    index = raw.rindex(b"PK\x01\x02") + 24  # the unpacked size of the last entry
    raw[index : index + 4] = b"\0\0\0\xf0"
    (tmp_path / "a.pt").write_bytes(raw)
    with pytest.raises(NetspaceError, match=r"a\.pt claims 4,026,\d+,\d+ bytes of tensors, which its own bytes cannot"):
        read_torch(tmp_path / "a.pt")
    header = json.dumps(
        {"w": {"dtype": "F32", "shape": [100_000, 100_000], "data_offsets": [0, 40_000_000_000]}}
    ).encode()
    (tmp_path / "a.safetensors").write_bytes(len(header).to_bytes(8, "little") + header)
    with pytest.raises(
        NetspaceError, match=r"a\.safetensors was expected to be a safetensors file, but cannot be read"
    ):
        read_tensors(tmp_path / "a.safetensors")


@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning")
def test_no_advice_to_load_unsafely_is_repeated(tmp_path: Path) -> None:
    torch.jit.script(torch.nn.Linear(2, 2)).save(tmp_path / "a.pt")
    with pytest.raises(NetspaceError) as caught:
        read_torch(tmp_path / "a.pt")
    assert str(caught.value) == (
        f"{tmp_path / 'a.pt'} was expected to be a torch file of tensors, but it cannot be read safely: it is a TorchScript "
        "program, of which nothing was run; save `model.state_dict()` alone"
    )
    torch.save({"x": torch.nn.Linear(2, 2)}, tmp_path / "a.pt")
    with pytest.raises(NetspaceError) as caught:
        read_torch(tmp_path / "a.pt")
    assert "weights_only" not in str(caught.value) and "of which nothing was run" in str(caught.value)


def test_a_damaged_line_of_metrics_is_left_out(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    for step in range(4):
        Metrics(path).write(step=step, loss=step / 3)
    lines = path.read_text().splitlines()
    lines[1] = lines[1].replace('"step": 1', '"step": 7')
    lines[2] = "[" * DEEP
    path.write_bytes("\n".join([*lines, "[1, 2]", '{"step": 9}', ""]).encode() + b"\xff\xfe")
    assert [record["step"] for record in read_metrics(path)] == [0, 3]  # the last has no checksum where others have one
    assert read_metrics(path)[1] == {"step": 3, "loss": 1.0}


@pytest.mark.parametrize("error", [KeyError("model"), TypeError("a list"), RuntimeError("size mismatch\nfor w")])
def test_a_checkpoint_of_another_kind_is_one_sentence(tmp_path: Path, error: Exception) -> None:
    with pytest.raises(NetspaceError) as caught, resuming_from(tmp_path / "last.pt"):
        raise error
    assert str(caught.value).startswith(f"{tmp_path / 'last.pt'} does not hold a state that can be resumed (")
    assert "delete it to begin anew" in str(caught.value) and "\n" not in str(caught.value)


def test_memory_that_runs_out_is_no_fault_of_a_checkpoint(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="bad_alloc"), resuming_from(tmp_path / "last.pt"):
        raise RuntimeError("std::bad_alloc")


def test_a_list_that_holds_itself_is_read(tmp_path: Path) -> None:
    ring: list[object] = [torch.ones(2)]
    ring.append(ring)
    torch.save({"ring": ring}, tmp_path / "a.pt")
    actual = read_torch(tmp_path / "a.pt")["ring"]
    assert actual[1] is actual and torch.equal(actual[0], torch.ones(2))


@pytest.mark.parametrize(("offset", "value"), [(46, 0xFF), (6, 0xFF)])  # of the entry's name; of the version it wants
def test_a_damaged_table_of_a_zip_file_is_one_sentence(tmp_path: Path, offset: int, value: int) -> None:
    path = tmp_path / "a.pt"
    torch.save({"w": torch.ones(4)}, path)
    raw = bytearray(path.read_bytes())
    index = raw.rindex(b"PK\x01\x02")
    raw[index + 9] |= 0x08  # names are UTF-8
    raw[index + offset] = value
    path.write_bytes(raw)
    try:
        assert torch.equal(read_torch(path)["w"], torch.ones(4))
    except NetspaceError as error:
        assert "cannot be read safely: " in str(error) and "\n" not in str(error)


def test_metrics_from_before_lines_had_a_checksum(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1, "loss": 0.5}\n{"step": 2, "lo\n{"step": 3}\n')
    assert read_metrics(path) == [{"step": 1, "loss": 0.5}, {"step": 3}]
    Metrics(path).keep(lambda record: record["step"] < 3)  # as who goes on with a run does
    Metrics(path).write(step=2)
    assert read_metrics(path) == [{"step": 1, "loss": 0.5}, {"step": 2}]
    assert path.read_text().count("netspace-crc32:") == 2


def test_what_is_cut_out_with_the_hash_is_noticed(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    write_json(path, {"zoo": "z.h5", "seed": 1})
    text = path.read_text()
    path.write_text(text[: text.index("z.h5")] + text[-4:])  # of which JSON makes {"zoo": "..."}
    with pytest.raises(NetspaceError, match=f"delete the entries '{SEALED}' and '{HASH}'"):
        read_json(path, dict[str, Any])
