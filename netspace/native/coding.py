"""Entropy coding of integer matrices: quantised weights in fewer bits than their entropy by value alone.

Each value is a few binary decisions: its bit length in unary, its sign and the bits after the first. The probability of a decision is
predicted from contexts that the decoder knows already: mean magnitudes of the row, the column, the input channel and the position in
the kernel so far, and the neighbours in the row, the kernel and the row above. The predictions are mixed in the logistic domain by
weights that are learnt while coding, and a binary arithmetic coder writes the decisions. All state is integers, so the bytes
are the same on every machine. Nothing but the shapes and the length of kernels is needed for decoding.

Axes: R rows (filters), C columns (input channels, each with all positions of its kernel)."""

from __future__ import annotations

from collections.abc import Sequence
from decimal import Context, Decimal
from functools import lru_cache
from typing import Any

import numpy as np

from netspace.errors import NetspaceError
from netspace.native import compiled

INPUTS = 12  # contexts of a decision
CONTEXTS = 1024  # values of a context at most
NODES = 64  # decisions that are told apart in a context
LENGTHS = 16  # bit lengths with a decision of their own
POSITIONS = 25  # in a kernel that are told apart
FIRST_WEIGHT = 65536 * 11 // 100  # of an input of a mixer, of 65536
SIGN = LENGTHS + 46  # the decision of the sign
ONE = 1 << 22  # probability 1 of a context's prediction
LIMIT = 1023  # observations after which a context adapts no slower
RELEARNT = 24  # observations that count at most when a further matrix begins
UNIT = 256  # of mean magnitudes
PRIOR = 6  # observations that the mean of all counts as, in the mean of a row or column
MAX_MAGNITUDE = 1 << 20  # in means
MAX_MEAN = (1 << 28) - 1  # in units of 1 / UNIT
HALF_RANGE = 3071  # of the logistic domain, in units of 1/256
BYTES_OF_FLUSH = 4
BYTES_OF_VALUE = 128  # at most: 65 decisions of 12 bits
LARGEST = (1 << 31) - 1


@lru_cache(maxsize=1)
def _tables() -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Return tables of the logistic function, its inverse, logarithms and reciprocals, as integers.

    `decimal` rounds correctly, so that they are the same on every machine.
    """
    context = Context(prec=20)

    def rounded(value: Decimal) -> int:
        return int(context.to_integral_value(value))

    stretch = [
        rounded(256 * context.ln(context.divide(2 * index + 1, 8191 - 2 * index)))  # of (index + 1/2) / 4096
        for index in range(4096)
    ]
    squash = [
        rounded(context.divide(65536, 1 + context.exp(context.divide(-index, 256))))
        for index in range(-HALF_RANGE, HALF_RANGE + 1)
    ]
    logs = [0] + [
        (each.bit_length() - 1) * 4 + (((each << 2) >> (each.bit_length() - 1)) & 3) for each in range(1, 4096)
    ]
    rates = [65536 // (count + 2) for count in range(LIMIT + 1)]
    return (
        np.array(stretch, dtype=np.int64),
        np.clip(np.array(squash, dtype=np.int64), 16, 65536 - 16),
        np.array(logs, dtype=np.int64),
        np.array(rates, dtype=np.int64),
    )


def encode(values: np.ndarray, period: int = 1) -> bytes:
    """Return the bytes of integers int32 (R, C); `period` is the number of positions in a kernel.

    >>> decode(encode(np.eye(3, dtype=np.int32)), (3, 3)).tolist()
    [[1, 0, 0], [0, 1, 0], [0, 0, 1]]
    """
    return encode_all([values], [period])


def decode(data: bytes, shape: tuple[int, int], period: int = 1) -> np.ndarray:
    """Return the integers int32 (R, C) that `encode` wrote. Raises `NetspaceError` if these are not its bytes."""
    return decode_all(data, [shape], [period])[0]


def encode_all(matrices: Sequence[np.ndarray], periods: Sequence[int]) -> bytes:
    """Return the bytes of several matrices int32 (R, C), in order; what is learnt from one serves the next."""
    shapes = np.array([matrix.shape for matrix in matrices], dtype=np.int64).reshape(-1, 2)
    values = np.concatenate(
        [np.asarray(matrix, dtype=np.int32).ravel() for matrix in matrices] or [np.empty(0, np.int32)]
    )
    data = np.empty(BYTES_OF_VALUE + 2 * len(values), dtype=np.uint8)
    while (used := _run(values, shapes, _periods(periods, len(shapes)), data, len(data), True, *_tables())) < 0:
        data = np.empty(2 * len(data), dtype=np.uint8)
    return data[:used].tobytes()


def decode_all(data: bytes, shapes: Sequence[tuple[int, int]], periods: Sequence[int]) -> list[np.ndarray]:
    """Return the matrices that `encode_all` wrote. Raises `NetspaceError` if these are not its bytes.

    Memory for the matrices is taken first: whoever reads shapes from a file checks them before.
    """
    sizes = np.array(shapes, dtype=np.int64).reshape(-1, 2)
    values = np.empty(int(sizes.prod(axis=1).sum()), dtype=np.int32)
    stored = np.frombuffer(bytearray(data), dtype=np.uint8)
    used = _run(values, sizes, _periods(periods, len(sizes)), stored, len(stored), False, *_tables())
    if not 0 <= len(stored) - used <= BYTES_OF_FLUSH:
        raise NetspaceError(
            f"{len(stored):,} bytes of entropy-coded integers were expected to be {len(values):,} values, but they are not: they "
            "were cut short or altered"
        )
    pieces = np.split(values, np.cumsum(sizes.prod(axis=1))[:-1])
    return [piece.reshape(shape) for piece, shape in zip(pieces, shapes, strict=True)] if len(sizes) else []


def _periods(periods: Sequence[int], count: int) -> np.ndarray:
    assert len(periods) == count
    return np.array(periods, dtype=np.int64)


@compiled
def _log(value: int, logs: np.ndarray) -> int:
    """Return four times the logarithm to base 2, rounded down, of a mean; `MAX_MEAN` stands for larger ones."""
    value = min(value, MAX_MEAN)
    if value < 4096:
        return logs[value]
    if value < 1 << 20:
        return logs[value >> 8] + 32
    return logs[value >> 16] + 64


@compiled
def _size(value: Any) -> Any:
    """Return the magnitude of a value, as it counts in means."""
    return min(abs(np.int64(value)), MAX_MAGNITUDE)


@compiled
def _sign(value: int) -> int:
    """Return 0, 1 or 2 for a value that is zero, positive or negative."""
    return (value > 0) + 2 * (value < 0)


@compiled
def _node(length: int, prefix: int) -> int:
    """Return the number of the decision about the next bit of a magnitude, after `prefix` (1 and the bits so far, up to 3)."""
    if length == 2:
        return LENGTHS
    if length == 3:
        return LENGTHS + prefix
    return LENGTHS + 4 + 7 * (min(length, 9) - 4) + prefix - 1


@compiled
def _run(
    values: np.ndarray,
    shapes: np.ndarray,
    periods: np.ndarray,
    data: np.ndarray,
    size: int,
    encoding: bool,
    stretch: np.ndarray,
    squash: np.ndarray,
    logs: np.ndarray,
    rates: np.ndarray,
) -> int:
    """Encode `values` into `data`, or decode them.

    Returns the number of bytes written, -1 if `data` is too short for them; or the number of bytes that were shifted in.
    """
    chances = np.full(INPUTS * CONTEXTS * NODES, ONE // 2, dtype=np.int32)
    counts = np.zeros(INPUTS * CONTEXTS * NODES, dtype=np.int16)
    weights = np.full((NODES, INPUTS), FIRST_WEIGHT, dtype=np.int64)
    by_position = np.full((NODES * POSITIONS, INPUTS), FIRST_WEIGHT, dtype=np.int64)
    seen = np.zeros(NODES, dtype=np.int64)  # decisions of each kind so far
    bases = np.empty(INPUTS, dtype=np.int64)
    signs = np.empty(INPUTS, dtype=np.int64)
    slots = np.empty(INPUTS, dtype=np.int64)
    inputs = np.empty(INPUTS, dtype=np.int64)
    dot, second, positioned = 0, 0, 0
    low, high, used = 0, (1 << 32) - 1, 0
    code: Any = 0
    if not encoding:
        for index in range(4):
            code = (code << 8) | (np.int64(data[index]) if index < size else 0)
        used = 4
    first = 0
    for matrix in range(len(shapes)):
        rows, columns, period = shapes[matrix, 0], shapes[matrix, 1], periods[matrix]
        if rows * columns == 0:
            continue
        side = 1
        while (side + 1) * (side + 1) <= period:
            side += 1
        if matrix > 0:
            for index in range(len(counts)):
                counts[index] = min(counts[index], RELEARNT)
        of_column = np.zeros(columns, dtype=np.int64)
        of_channel = np.zeros(columns // period + 1, dtype=np.int64)
        of_position = np.zeros(period, dtype=np.int64)
        total = 0
        for row in range(rows):
            of_row, of_kernel, kernel_sum = 0, 0, 0
            for column in range(columns):
                here = first + row * columns + column
                if encoding and used + BYTES_OF_VALUE > size:
                    return -1
                channel, position = column // period, column % period
                if position == 0:
                    of_kernel, kernel_sum = 0, 0
                # The mean magnitudes so far, in units of 1 / UNIT, and what they let expect together.
                mean = (total * UNIT + UNIT) // (row * columns + column + 2) + 1
                prior = PRIOR * mean
                row_mean = (of_row * UNIT + prior) // (column + PRIOR)
                column_mean = (of_column[column] * UNIT + prior) // (row + PRIOR)
                channel_mean = (of_channel[channel] * UNIT + prior) // (row * period + position + PRIOR)
                passed = row * (columns // period) + channel
                position_mean = (of_position[position] * UNIT + prior) // (passed + PRIOR)
                joint = min(min(row_mean * channel_mean // mean, MAX_MEAN) * position_mean // mean, MAX_MEAN)
                crossing = min(row_mean * column_mean // mean, MAX_MEAN)
                # The neighbours: in the row, in the rows of the kernel, in the channel before and in the row above.
                left = values[here - 1] if column > 0 else 0
                before = values[here - 2] if column > 1 else 0
                inside = left if position % side > 0 else 0
                above = values[here - side] if position >= side else 0
                corner = values[here - side - 1] if position >= side and position % side > 0 else 0
                back = values[here - period] if column >= period else 0
                over = values[here - columns] if row > 0 else 0
                near = (2 * _size(left) + _size(before) + _size(above) + _size(over)) * UNIT // 5
                around = (2 * _size(inside) + 2 * _size(above) + _size(corner)) * UNIT // 5
                row_log, channel_log, joint_log = _log(row_mean, logs), _log(channel_mean, logs), _log(joint, logs)
                where = min(position, POSITIONS - 1)
                bases[0] = 0
                bases[1] = row_log
                bases[2] = _log(column_mean, logs)
                bases[3] = joint_log
                bases[4] = (row_log >> 2) * 32 + (channel_log >> 2)
                bases[5] = min(_size(left), 7) * 64 + min(_size(before), 7) * 8 + min(_size(above), 7)
                bases[6] = (joint_log >> 1) * 16 + (_log(near, logs) >> 2) % 16
                bases[7] = min(position, 15) * 64 + (channel_log >> 1)
                bases[8] = _log(crossing, logs)
                bases[9] = (
                    (_log(of_kernel * UNIT // max(position, 1), logs) >> 1) * 16
                    + min(position, 1)
                    + (joint_log >> 2) % 8 * 2
                )
                bases[10] = where * 40 + (_log(around, logs) >> 1)
                bases[11] = where * 40 + (row_log >> 1)
                for index in range(INPUTS):
                    bases[index] = (index * CONTEXTS + min(bases[index], CONTEXTS - 1)) * NODES
                actual: Any = np.int64(values[here]) if encoding else 0
                magnitude = abs(actual)
                length = 0
                while (magnitude >> length) > 0:
                    length += 1
                stage, node, prefix, left_bits = 0, 0, 1, 0
                decoded, decoded_length, negative = 0, 0, False
                while True:
                    # Which decision comes next: the length in unary (0), the sign (1), the bits after the first (2).
                    raw = False
                    if stage == 0:
                        node = min(decoded_length, LENGTHS - 1)
                        bit = 1 if length > decoded_length else 0
                    elif stage == 1:
                        node = SIGN
                        bit = 1 if actual < 0 else 0
                    else:
                        bit = (magnitude >> left_bits) & 1
                        raw = prefix >= 8
                        node = 0 if raw else _node(decoded_length, prefix)
                    if stage == 1:
                        signs[0] = 0
                        signs[1] = _sign(left)
                        signs[2] = _sign(above)
                        signs[3] = _sign(over)
                        signs[4] = _sign(left) * 9 + _sign(above) * 3 + _sign(before)
                        signs[5] = where
                        signs[6] = min(decoded_length, 7)
                        signs[7] = where * 9 + _sign(left) * 3 + _sign(above)
                        signs[8] = _sign(before)
                        signs[9] = _sign(kernel_sum)
                        signs[10] = where * 27 + _sign(inside) * 9 + _sign(above) * 3 + _sign(corner)
                        signs[11] = where * 9 + _sign(back) * 3 + _sign(over)
                        for index in range(INPUTS):
                            slots[index] = (index * CONTEXTS + signs[index]) * NODES + SIGN
                    else:
                        for index in range(INPUTS):
                            slots[index] = bases[index] + node
                    chance = 32768  # of a 1, of 65536
                    if not raw:
                        dot, second = 0, 0
                        positioned = node * POSITIONS + where
                        for index in range(INPUTS):
                            inputs[index] = stretch[chances[slots[index]] >> 10]
                            dot += inputs[index] * weights[node, index]
                            second += inputs[index] * by_position[positioned, index]
                        dot = max(-HALF_RANGE, min(HALF_RANGE, dot >> 16))
                        second = max(-HALF_RANGE, min(HALF_RANGE, second >> 16))
                        chance = squash[((dot + second) >> 1) + HALF_RANGE]
                    # The arithmetic coder: a 1 has the lower part of the range.
                    span = high - low
                    middle = low + (span >> 16) * chance + (((span & 65535) * chance) >> 16)
                    if not encoding:
                        bit = 1 if code <= middle else 0
                    if bit == 1:
                        high = middle
                    else:
                        low = middle + 1
                    while ((low ^ high) >> 24) == 0:
                        if encoding:
                            data[used] = high >> 24
                        else:
                            code = ((code << 8) & 0xFFFFFFFF) | (np.int64(data[used]) if used < size else 0)
                        used += 1
                        low = (low << 8) & 0xFFFFFFFF
                        high = ((high << 8) & 0xFFFFFFFF) | 255
                    if not raw:
                        error = (bit << 16) - squash[dot + HALF_RANGE]
                        second_error = (bit << 16) - squash[second + HALF_RANGE]
                        rate = 120 + 800 * 100 // (100 + seen[node])
                        seen[node] += 1
                        for index in range(INPUTS):
                            weights[node, index] += (inputs[index] * error * rate + (1 << 23)) >> 24
                            by_position[positioned, index] += (inputs[index] * second_error * rate + (1 << 22)) >> 23
                            slot = slots[index]
                            count = counts[slot]
                            chances[slot] += (((bit << 22) - chances[slot]) * rates[count]) >> 16
                            if count < LIMIT:
                                counts[slot] = count + 1
                    # What was decided.
                    if stage == 0:
                        if bit == 1:
                            decoded_length += 1
                        if bit == 0 or decoded_length == 32:
                            if decoded_length == 0:
                                break
                            stage, decoded, left_bits = 1, 1, decoded_length - 2
                    elif stage == 1:
                        negative = bit == 1
                        if left_bits < 0:
                            break
                        stage = 2
                    else:
                        decoded = decoded * 2 + bit
                        prefix = prefix * 2 + bit
                        left_bits -= 1
                        if left_bits < 0:
                            break
                if not encoding:
                    if negative:
                        decoded = -decoded
                    if decoded > LARGEST or decoded < -LARGEST - 1:
                        return size + BYTES_OF_FLUSH + 1  # no integer of 32 bits: these bytes are damaged
                    values[here] = decoded
                    magnitude = abs(decoded)
                magnitude = min(magnitude, MAX_MAGNITUDE)
                of_row += magnitude
                of_kernel += magnitude
                kernel_sum += int(values[here])
                of_column[column] += magnitude
                of_channel[channel] += magnitude
                of_position[position] += magnitude
                total += magnitude
        first += rows * columns
    if not encoding:
        return used - 4
    for length in range(5):  # the fewest bytes that, with zeros after them, lie in the range
        shift = 32 - 8 * length
        end = ((low + (1 << shift) - 1) >> shift) << shift
        if end <= high:
            for index in range(length):
                data[used] = (end >> (24 - 8 * index)) & 255
                used += 1
            break
    return used
