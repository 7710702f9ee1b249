"""Pictures in rows and columns: every cell is where it belongs, with its names."""

from __future__ import annotations

import numpy as np

from netspace.report.drawing import to_png
from netspace.report.strips import image_strip
from netspace.tasks import DataConfig, load


def test_cells_are_the_images_in_their_rows_and_columns() -> None:
    random = np.random.RandomState(0)
    rows = {name: random.randint(0, 256, (3, 5, 4, 3), dtype=np.uint8) for name in ("image", "truth")}
    figure = image_strip(rows, ["a", "b", "c"], inches=1.0)
    for axes, (name, images) in zip(figure.axes, rows.items(), strict=True):
        (shown,) = axes.images
        assert shown.get_array().shape == (5, 12, 3) and shown.get_interpolation() == "nearest"
        assert all(np.array_equal(shown.get_array()[:, 4 * s : 4 * s + 4], images[s]) for s in range(3))
        assert name in [text.get_text() for text in axes.texts]
    assert [text.get_text() for text in figure.axes[0].texts] == ["image", "a", "b", "c"]
    assert figure.axes[0].get_position().y0 > figure.axes[1].get_position().y0
    assert to_png(figure) == to_png(image_strip(rows, ["a", "b", "c"], inches=1.0))


def test_it_draws_what_a_task_shows() -> None:
    import torch

    from netspace import archs

    for name, arch in (("segmentation", "unet"), ("generation", "conv_vae")):
        task = load(DataConfig(name=name, limit=10))
        net = archs.build(
            arch, **archs.task_settings(arch, {"width": 0.1}, task.input_shape, 1, task.arch_settings)
        ).eval()
        rows = task.pictures(net, "test", torch.tensor([0, 3]))
        assert len(rows) == 3 and len(image_strip(rows, ["0", "3"]).axes) == 3
    assert load("digits").pictures(lambda x: x, "test", torch.tensor([0])) == {}
