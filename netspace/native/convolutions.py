"""Convolutions of many small networks at once, each with kernels of its own.

Axes: M networks, O output channels in groups, T taps of a kernel (input channels of its group x rows x columns), Y X pixels of
outputs, B inputs of a batch. The batch is last in memory, and columns that a stride leads from one to the next are neighbours, so that
for every tap the values that a row of outputs takes from an image are one piece of memory: loops run over its X * B values as vectors,
however few channels there are. Images that all networks share have one row, M = 1.

`taps` (T, 4) says of each where its piece begins for the first row of outputs, in which row of the image that is (less than 0 above
it), and from which to which value of a row of outputs there is one: elsewhere a tap reads zeros around the image, which are not
stored. `sizes` are the groups, how many values each is from the next, the image's rows, and how many rows and values each row of
outputs is from the next.
"""

from __future__ import annotations

from netspace.native import compiled_in_vectors

VALUES = 16384  # of rows that are computed at once: a little more than a first-level cache holds was fastest


@compiled_in_vectors
def pack(images, out, top, left, first, last):  # type: ignore[no-untyped-def]
    """Write images (M, C, H, W, B) with zeros around them as (M, C, rows, stride, columns / stride, B), for networks `first` to `last`."""
    _, channels, height, width, _ = images.shape
    rows, stride, columns = out.shape[2:5]
    for m in range(first, last):
        for c in range(channels):
            for y in range(rows):
                for x in range(stride * columns):
                    values = out[m, c, y, x % stride, x // stride]
                    if 0 <= y - top < height and 0 <= x - left < width:
                        values[:] = images[m, c, y - top, x - left]
                    else:
                        values[:] = 0


@compiled_in_vectors
def unpack(parts, images, top, left, first, last):  # type: ignore[no-untyped-def]
    """Write images (M, C, H, W, B) from what `pack` makes of them."""
    _, channels, height, width, _ = images.shape
    stride = parts.shape[3]
    for m in range(first, last):
        for c in range(channels):
            for y in range(height):
                for x in range(width):
                    images[m, c, y, x] = parts[m, c, y + top, (x + left) % stride, (x + left) // stride]


@compiled_in_vectors
def _tile(rows):  # type: ignore[no-untyped-def]
    """Return how many values of a row are computed at once, so that so many rows stay in the first-level cache: vectors of 16."""
    return max(VALUES // (rows + 4) // 16 * 16, 64)


@compiled_in_vectors
def _add_three(out, a, b, c, u, v, w):  # type: ignore[no-untyped-def]
    for t in range(len(out)):
        out[t] += u * a[t] + v * b[t] + w * c[t]


@compiled_in_vectors
def _add_three_twice(first, second, a, b, c, u, v, w, x, y, z):  # type: ignore[no-untyped-def]
    """What is read once goes to two outputs."""
    for t in range(len(first)):
        p, q, r = a[t], b[t], c[t]
        first[t] += u * p + v * q + w * r
        second[t] += x * p + y * q + z * r


@compiled_in_vectors
def _add_one(out, a, u):  # type: ignore[no-untyped-def]
    for t in range(len(out)):
        out[t] += u * a[t]


@compiled_in_vectors
def _dot_three(out, a, b, c):  # type: ignore[no-untyped-def]
    u = v = w = out.dtype.type(0)
    for t in range(len(out)):
        u += out[t] * a[t]
        v += out[t] * b[t]
        w += out[t] * c[t]
    return u, v, w


@compiled_in_vectors
def _dot_one(out, a):  # type: ignore[no-untyped-def]
    u = out.dtype.type(0)
    for t in range(len(out)):
        u += out[t] * a[t]
    return u


@compiled_in_vectors
def _span(tap, row, rows, begin, end):  # type: ignore[no-untyped-def]
    """Return which of the values `begin` to `end` of a row of outputs have a value of an image for a tap."""
    if row + tap[1] < 0 or row + tap[1] >= rows:
        return begin, begin
    first = max(tap[2], begin)
    return first, max(min(tap[3], end), first)


@compiled_in_vectors
def _span_of_three(taps, row, rows, begin, end):  # type: ignore[no-untyped-def]
    """Return what the spans of three taps have in common, which may be nothing; always nothing of fewer taps."""
    first, last = _span(taps[0], row, rows, begin, end)
    if len(taps) < 3:
        return last, last
    for tap in taps[1:]:
        low, high = _span(tap, row, rows, begin, end)
        first, last = max(first, low), min(last, high)
    return first, max(first, last)


@compiled_in_vectors
def convolve(images, weights, bias, outputs, taps, sizes, first, last):  # type: ignore[no-untyped-def]
    """Write the outputs (M, O, Y, X * B) of networks `first` to `last`: images (M or 1, values), weights (M, O, T), bias (M, O)."""
    _, count, length = weights.shape
    height, width = outputs.shape[2:]
    groups, skip, rows, down, step = sizes
    each, tile = count // groups, _tile(count)
    for m in range(first, last):
        own, kernels = images[m if len(images) > 1 else 0], weights[m]
        for y in range(height):
            for at in range(0, width, tile):
                end = min(at + tile, width)
                for o in range(count):
                    outputs[m, o, y, at:end] = bias[m, o]
                for g in range(groups):
                    base, lowest, highest, t = y * step + g * skip, g * each, (g + 1) * each, 0
                    while t < length:
                        begin, stop = _span_of_three(taps[t : t + 3], y * down, rows, at, end)
                        if begin < stop:
                            a = own[base + taps[t, 0] + begin :]
                            b, c = own[base + taps[t + 1, 0] + begin :], own[base + taps[t + 2, 0] + begin :]
                            o = lowest
                            while o + 2 <= highest:
                                one, two = outputs[m, o, y, begin:stop], outputs[m, o + 1, y, begin:stop]
                                k, n = kernels[o, t:], kernels[o + 1, t:]
                                _add_three_twice(one, two, a, b, c, k[0], k[1], k[2], n[0], n[1], n[2])
                                o += 2
                            if o < highest:
                                k = kernels[o, t:]
                                _add_three(outputs[m, o, y, begin:stop], a, b, c, k[0], k[1], k[2])
                        for i in range(t, min(t + 3, length) if begin < stop else t + 1):
                            p, q = _span(taps[i], y * down, rows, at, end)
                            for low, high in ((p, min(begin, q)), (max(stop, p), q)):
                                if low < high:
                                    for o in range(lowest, highest):
                                        _add_one(
                                            outputs[m, o, y, low:high], own[base + taps[i, 0] + low :], kernels[o, i]
                                        )
                        t += 3 if begin < stop else 1


@compiled_in_vectors
def image_gradients(gradients, weights, images, taps, sizes, first, last):  # type: ignore[no-untyped-def]
    """Write gradients of images (M, values) from those of outputs (M, O, Y, X * B)."""
    _, count, length = weights.shape
    height, width = gradients.shape[2:]
    groups, skip, rows, down, step = sizes
    each = count // groups
    tile = _tile(each)
    for m in range(first, last):
        own, kernels = images[m], weights[m]
        own[:] = 0
        for y in range(height):
            for at in range(0, width, tile):
                for g in range(groups):
                    base, highest = y * step + g * skip, (g + 1) * each
                    for t in range(length):
                        p, q = _span(taps[t], y * down, rows, at, min(at + tile, width))
                        if p == q:
                            continue
                        out, o = own[base + taps[t, 0] + p : base + taps[t, 0] + q], g * each
                        while o + 3 <= highest:
                            a, b, c = gradients[m, o, y, p:q], gradients[m, o + 1, y, p:q], gradients[m, o + 2, y, p:q]
                            _add_three(out, a, b, c, kernels[o, t], kernels[o + 1, t], kernels[o + 2, t])
                            o += 3
                        while o < highest:
                            _add_one(out, gradients[m, o, y, p:q], kernels[o, t])
                            o += 1


@compiled_in_vectors
def weight_gradients(images, gradients, weights, taps, sizes, first, last):  # type: ignore[no-untyped-def]
    """Write gradients of weights (M, O, T); other arguments as those of `convolve`."""
    _, count, length = weights.shape
    height, width = gradients.shape[2:]
    groups, skip, rows, down, step = sizes
    each, tile = count // groups, _tile(count)
    for m in range(first, last):
        own, sums = images[m if len(images) > 1 else 0], weights[m]
        sums[:] = 0
        for y in range(height):
            for at in range(0, width, tile):
                end = min(at + tile, width)
                for g in range(groups):
                    base, lowest, highest, t = y * step + g * skip, g * each, (g + 1) * each, 0
                    while t < length:
                        begin, stop = _span_of_three(taps[t : t + 3], y * down, rows, at, end)
                        if begin < stop:
                            a = own[base + taps[t, 0] + begin :]
                            b, c = own[base + taps[t + 1, 0] + begin :], own[base + taps[t + 2, 0] + begin :]
                            for o in range(lowest, highest):
                                d, e, f = _dot_three(gradients[m, o, y, begin:stop], a, b, c)
                                sums[o, t] += d
                                sums[o, t + 1] += e
                                sums[o, t + 2] += f
                        for i in range(t, min(t + 3, length) if begin < stop else t + 1):
                            p, q = _span(taps[i], y * down, rows, at, end)
                            for low, high in ((p, min(begin, q)), (max(stop, p), q)):
                                if low < high:
                                    for o in range(lowest, highest):
                                        given = gradients[m, o, y, low:high]
                                        sums[o, i] += _dot_one(given, own[base + taps[i, 0] + low :])
                        t += 3 if begin < stop else 1
