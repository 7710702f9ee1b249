"""Sizes as people write them, and what says how small a file is to be."""

from __future__ import annotations

import pytest

from netspace.compression.sizes import parse_budget, parse_size
from netspace.errors import UsageError


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("100KB", 100_000),
        ("85kB", 85_000),
        ("2.3MB", 2_300_000),
        ("1MiB", 1_048_576),
        ("1.5 KiB", 1536),
        ("85000", 85_000),
        (" 12 b ", 12),
        ("0.5KB", 500),
        ("1.001KB", 1001),
        ("4.035MB", 4_035_000),
    ],
)
def test_sizes(text: str, size: int) -> None:
    assert parse_size(text) == size


@pytest.mark.parametrize("text", ["", "KB", "-3KB", "0", "0.0001KB", "1e5", "12 TB", "1,000", "½KB", "inf", "9" * 40])
def test_what_is_no_size(text: str) -> None:
    with pytest.raises(UsageError, match=r"--bytes .* was expected to be a size of at least one byte, as in 100KB"):
        parse_size(text)


def test_one_budget_is_given() -> None:
    assert parse_budget(None, None, None) == {}
    assert parse_budget("1KB", None, None) == {"bytes": 1000}
    assert parse_budget(None, 12.0, None) == {"ratio": 12.0}
    assert parse_budget(None, None, 0.0) == {"accuracy_drop": 0.0}
    with pytest.raises(UsageError, match=r"--bytes and --ratio each say how small the file is to be: give one of them"):
        parse_budget("1KB", 12.0, None)
    with pytest.raises(UsageError, match=r"--ratio 1 was expected to be a number above 1"):
        parse_budget(None, 1.0, None)
    with pytest.raises(UsageError, match=r"--accuracy-drop -1 was expected to be percentage points"):
        parse_budget(None, None, -1.0)
