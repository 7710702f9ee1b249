"""Controls for architectures that a space never saw."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from netspace import archs
from netspace.commands import interpolate as lines
from netspace.commands.baselines import distilled, learnt_part_off
from netspace.commands.evaluate import evaluate
from netspace.errors import UsageError
from netspace.networks.prep import unflatten, unpack
from netspace.space import Space
from netspace.training.setup import Teacher, task_of, teacher
from netspace.zoo import Zoo, teacher_path


@pytest.fixture
def zoo(multi_zoo: Path) -> Iterator[Zoo]:
    with Zoo(multi_zoo) as opened:
        yield opened


def test_with_the_learnt_part_off_every_latent_is_the_bias(unseen: Path, zoo: Zoo) -> None:
    space, task = Space.load(unseen), task_of(zoo, "cpu")
    arch = space.arch_class("vanilla")
    before = space.decode_flat(torch.zeros(1, space.latent), "vanilla")
    with learnt_part_off(space):
        flat = space.decode_flat(torch.randn(3, space.latent), "vanilla")
    bias = unpack(space.model.decoder.bias[space.class_id("vanilla")], arch.parameters)
    assert torch.equal(flat, bias.expand(3, -1)) and not torch.equal(flat[:1], before)
    assert torch.equal(space.decode_flat(torch.zeros(1, space.latent), "vanilla"), before)
    network = archs.skeleton(arch.spec.arch, arch.spec.settings, arch.spec.input_shape)
    network.load_state_dict(unflatten(bias, arch.spec))
    with torch.no_grad():
        right = network(task.normalise(task.test.images)).argmax(-1) == task.test.labels
    actual = evaluate(unseen, "test", distil=False).between["vanilla"]
    if actual.classid_accuracy == 1:  # else some are decoded as another architecture
        assert actual.accuracy_scale_zero == pytest.approx(float(right.double().mean()), abs=1.5 / 500)
    assert actual.accuracy_distilled is None and actual.distilled_steps is None


def test_a_distilled_network_learns_from_the_teacher_alone(unseen: Path, zoo: Zoo) -> None:
    space, task = Space.load(unseen), task_of(zoo, "cpu")
    arch, master = space.arch_class("vanilla"), teacher("auto", zoo, task)
    assert space.recipe.multi is not None
    own = space.recipe.multi.model_copy(update={"alpha": 1.0})
    space.recipe = space.recipe.model_copy(update={"steps": 200, "multi": own})
    score = distilled(space, arch, master, task)
    assert score > 0.45 and distilled(space, arch, master, task) == score

    class Three(Teacher):
        def __call__(self, images: torch.Tensor) -> torch.Tensor:
            return 20.0 * F.one_hot(torch.full((len(images),), 3), 10).float()

    stubborn = distilled(space, arch, Three("three", master.nets, master.flat), task)
    assert stubborn == pytest.approx(float((task.test.labels == 3).double().mean()), abs=0.02)


def test_which_controls_are_trained(unseen: Path, run: Path, zoo: Zoo, monkeypatch: pytest.MonkeyPatch) -> None:
    """For architectures never shown, by default where it takes few steps and there is a teacher."""
    calls: list[str] = []
    monkeypatch.setattr(lines, "distilled", lambda space, arch, *_: calls.append(arch.id) or 0.5)
    actual = evaluate(unseen, "test").between
    assert calls == ["vanilla", "declared"] and actual["declared"].accuracy_distilled == 0.5
    assert actual["vanilla"].distilled_steps == Space.load(unseen).recipe.steps
    evaluate(run, "test", distil=True)  # every architecture was shown
    monkeypatch.setattr(lines, "AUTOMATIC_STEPS", 1)
    evaluate(unseen, "test")
    assert len(calls) == 2
    evaluate(unseen, "test", distil=True)
    assert len(calls) == 4


def test_without_a_teacher_the_control_is_left_out_or_refused(unseen: Path, zoo: Zoo, tmp_path: Path) -> None:
    lone = tmp_path / "lone.h5"
    lone.write_bytes(zoo.path.read_bytes())
    assert not teacher_path(lone).exists()
    assert evaluate(unseen, "test", lone).between["vanilla"].accuracy_distilled is None
    with pytest.raises(UsageError, match="no teacher next to it"):
        evaluate(unseen, "test", lone, distil=True)
