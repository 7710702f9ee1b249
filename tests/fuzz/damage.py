"""Damages to a file's bytes, drawn by a seed."""

from __future__ import annotations

import random

DEEP = 5000


def damaged(content: bytes, seed: int) -> bytes:
    """`content` with one to three damages, drawn by `seed`."""
    draw, raw = random.Random(seed), bytearray(content)
    for _ in range(draw.choice((1, 1, 1, 2, 3))):
        raw = draw.choice(DAMAGES)(raw, draw)
    return bytes(raw)


def flip(raw: bytearray, draw: random.Random) -> bytearray:
    if raw:
        raw[draw.randrange(len(raw))] ^= 1 << draw.randrange(8)
    return raw


def byte(raw: bytearray, draw: random.Random) -> bytearray:
    if raw:
        raw[draw.randrange(len(raw))] = draw.choice((0, 0xFF, draw.randrange(256), *b'0123456789"{}[]:,-.eE \n'))
    return raw


def block(raw: bytearray, draw: random.Random) -> bytearray:
    start, length = _slice(raw, draw)
    raw[start : start + length] = draw.choice((bytes(length), b"\xff" * length, draw.randbytes(length)))
    return raw


def checksum_blind(raw: bytearray, draw: random.Random) -> bytearray:
    """Two bytes 0x0000 become 0xFFFF: Fletcher-32 cannot tell."""
    places = [place for place in range(len(raw) - 1) if not raw[place] and not raw[place + 1]]
    if places:
        place = draw.choice(places)
        raw[place : place + 2] = b"\xff\xff"
    return raw


def cut(raw: bytearray, draw: random.Random) -> bytearray:
    return raw[: draw.randrange(len(raw) + 1)]


def without(raw: bytearray, draw: random.Random) -> bytearray:
    start, length = _slice(raw, draw)
    del raw[start : start + length]
    return raw


def inserted(raw: bytearray, draw: random.Random) -> bytearray:
    start, length = _slice(raw, draw)
    new = (
        draw.randbytes(length),
        raw[start : start + length],
        b"[" * DEEP,
        b'{"a":' * DEEP,
        b"9" * DEEP,
        b"NaN",
        b"-1",
        b"null",
    )
    raw[start:start] = draw.choice(new)
    return raw


def copied(raw: bytearray, draw: random.Random) -> bytearray:
    """A piece lies in another place too."""
    start, length = _slice(raw, draw)
    place = draw.randrange(len(raw) - length + 1)
    raw[place : place + length] = raw[start : start + length]
    return raw


def digit(raw: bytearray, draw: random.Random) -> bytearray:
    """Another digit: text stays text of the same form."""
    places = [place for place, value in enumerate(raw) if chr(value).isdigit()]
    if places:
        raw[draw.choice(places)] = ord(draw.choice("0123456789"))
    return raw


def _slice(raw: bytearray, draw: random.Random) -> tuple[int, int]:
    length = min(len(raw), draw.choice((1, 2, 4, 8, 16, 64, 512)))
    return draw.randrange(len(raw) - length + 1), length


DAMAGES = (flip, flip, byte, block, checksum_blind, cut, without, inserted, copied, digit)
