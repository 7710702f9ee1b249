"""Batch norm of many networks in training at once, whose feature maps have the batch last in memory.

Axes: M networks, C channels, N values of a channel (H * W * B). A channel is one piece of memory that a second-level cache holds, so
that the passes over it after the first do not wait for memory. Sums are of pieces, in the values' own precision, and then in float64.
"""

from __future__ import annotations

from netspace.native import compiled_in_vectors

PIECE = 512  # values of a sum in the values' own precision: as many vectors as hide how long an addition takes


@compiled_in_vectors
def _sum(values, origin):  # type: ignore[no-untyped-def]
    total = values.dtype.type(0)
    for t in range(len(values)):
        total += values[t] - origin
    return total


@compiled_in_vectors
def _sum_of_squares(values, mean):  # type: ignore[no-untyped-def]
    total = values.dtype.type(0)
    for t in range(len(values)):
        centred = values[t] - mean
        total += centred * centred
    return total


@compiled_in_vectors
def _sums_of_gradients(given, values, mean):  # type: ignore[no-untyped-def]
    total = product = values.dtype.type(0)
    for t in range(len(values)):
        total += given[t]
        product += given[t] * (values[t] - mean)
    return total, product


@compiled_in_vectors
def _scaled(out, values, mean, scale, shift):  # type: ignore[no-untyped-def]
    for t in range(len(values)):
        out[t] = (values[t] - mean) * scale + shift


@compiled_in_vectors
def _combined(out, given, values, mean, a, b, c):  # type: ignore[no-untyped-def]
    for t in range(len(values)):
        out[t] = a * given[t] + b * (values[t] - mean) + c


@compiled_in_vectors
def normalise(values, weight, bias, outputs, means, variances, epsilon, first, last):  # type: ignore[no-untyped-def]
    """Write outputs (M, C, N), means and variances (M, C; biased) of networks `first` to `last`. Constant channels become `bias` exactly."""
    _, channels, length = values.shape
    number = values.dtype.type
    for m in range(first, last):
        for c in range(channels):
            own, origin, total = values[m, c], values[m, c, 0], 0.0
            for at in range(0, length, PIECE):
                total += _sum(own[at : at + PIECE], origin)
            exact = origin + total / length
            mean, squares = number(exact), 0.0
            for at in range(0, length, PIECE):
                squares += _sum_of_squares(own[at : at + PIECE], mean)
            means[m, c], variances[m, c] = mean, max(squares / length - (exact - mean) ** 2, 0.0)
            scale = weight[m, c] / (variances[m, c] + epsilon) ** 0.5
            _scaled(outputs[m, c], own, mean, number(scale), number(bias[m, c]))


@compiled_in_vectors
def gradients(given, values, weight, means, variances, images, weights, biases, epsilon, first, last):  # type: ignore[no-untyped-def]
    """Write gradients of values (M, C, N), weights and biases (M, C) from those of outputs, `given` (M, C, N)."""
    _, channels, length = values.shape
    number = values.dtype.type
    for m in range(first, last):
        for c in range(channels):
            above, own, mean = given[m, c], values[m, c], means[m, c]
            total = product = 0.0
            for at in range(0, length, PIECE):
                one, two = _sums_of_gradients(above[at : at + PIECE], own[at : at + PIECE], mean)
                total += one
                product += two
            inverse = 1 / (variances[m, c] + epsilon) ** 0.5
            weights[m, c], biases[m, c] = product * inverse, total
            scale = weight[m, c] * inverse
            slope = -scale * inverse * inverse * product / length
            _combined(images[m, c], above, own, mean, number(scale), number(slope), number(-scale * total / length))
