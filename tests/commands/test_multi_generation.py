"""New and better networks of several architectures: drawn, also of those never shown; optimised, each as what it is."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from netspace.commands import optimize as app
from netspace.commands.convert import Named, resolve, zoo_of
from netspace.commands.optimize import OptimizeConfig, Search, optimize
from netspace.commands.sample import known_latents, sample
from netspace.errors import NetspaceError, UsageError
from netspace.networks.family import Networks
from netspace.networks.state_dict import flat_parameters
from netspace.space import Space
from netspace.training.setup import task_of, teacher
from netspace.training.validation import accuracies
from netspace.zoo import teacher_path


def written(run: Path, file: str, arch: str) -> float:
    """Test accuracy of a network that was written."""
    space = Space.load(run)
    flat = flat_parameters(load_file(file), space.arch_class(arch).spec)
    with zoo_of(run) as zoo:
        network = Networks.of_class(space.family, space.class_id(arch), flat[None])
        return float(accuracies(network, task_of(zoo, "cpu"), "test")[0])


# ---- sample


@pytest.mark.parametrize("arch", ["lenet", "vanilla", "resnet"])
def test_samples_of_a_shown_architecture(run: Path, tmp_path: Path, arch: str) -> None:
    result = sample(run, 3, arch, save=tmp_path / "nets")
    assert (result.arch, result.shown, result.count) == (arch, True, 3)
    assert result.factor == {"lenet": 0, "vanilla": 0.5, "resnet": 1}[arch]
    assert 0 <= result.classid_accuracy <= 1 and len(result.novelty) == 3
    for file, score in zip(result.networks, result.accuracy, strict=True):
        assert written(run, file, arch) == pytest.approx(score, abs=1.5 / 500)
    with zoo_of(run) as zoo:
        group = zoo.group(arch)
        own = group.members["accuracy_test"][group.rows("train")].mean()
    assert result.zoo_accuracy == pytest.approx(own)
    assert (run / "samples" / f"{arch}-gaussian-0.json").is_file()


def test_samples_of_an_architecture_never_shown_that_the_zoo_has(unseen: Path) -> None:
    result = sample(unseen, 3, "vanilla")
    assert result.shown is False and result.factor == pytest.approx(1 / 3)
    assert result.zoo_accuracy is not None and result.nearest.novelty == 0  # normally trained ones, to compare with


def test_samples_of_an_architecture_that_nobody_ever_trained(unseen: Path, tmp_path: Path) -> None:
    result = sample(unseen, 3, "declared", save=tmp_path / "nets")
    assert result.shown is False and result.factor == pytest.approx(2 / 3)
    assert result.zoo_accuracy is None and result.novelty == [None] * 3
    assert result.sampled.novelty is result.sampled.distance is None and result.nearest is None
    for file, score in zip(result.networks, result.accuracy, strict=True):
        assert written(unseen, file, "declared") == pytest.approx(score, abs=1.5 / 500)


def test_what_was_never_shown_is_drawn_from_where_eq_12_puts_it(unseen: Path) -> None:
    space = Space.load(unseen)
    with zoo_of(unseen) as zoo:
        ends = [known_latents(space, zoo, space.family[class_id]) for class_id in (0, 3)]
        actual = known_latents(space, zoo, space.family[2])
    assert [len(end) for end in ends] == [6, 6] and actual.shape == (256, 64)
    every = torch.cat([a + (b - a) * 2 / 3 for a in ends[0] for b in ends[1][None]])  # (36, E)
    apart = (actual[:, None] - every[None]).norm(dim=-1)
    assert apart.min(1).values.max() < 1e-4  # each is one of the 36 points
    assert len(apart.argmin(1).unique()) > 30


def test_which_architecture_has_to_be_said(run: Path) -> None:
    with pytest.raises(UsageError) as result:
        sample(run, 3)
    assert str(result.value) == "this space holds networks of lenet, vanilla, resnet: name one of them (--arch)"
    with pytest.raises(UsageError, match=r"unknown architecture 'lenett': did you mean 'lenet'\?"):
        sample(run, 3, "lenett")


# ---- optimize


def config(*starts: str, **changes: Any) -> OptimizeConfig:
    small = {"steps": 20, "validate_every": 10, "learning_rate": 0.05, "alpha": 0.5, "temperature": 2.0}
    return OptimizeConfig.model_validate({"starts": starts, **small, **changes})


STARTS = ("worst:lenet", "resnet/0001", "noise:vanilla")


def test_starts_of_several_architectures_stay_what_they_are(run: Path, tmp_path: Path) -> None:
    weights = (run / "checkpoints" / "best.safetensors").read_bytes()
    result = optimize(run, config(*STARTS), tmp_path / "out")
    assert result.arch == ["lenet", "resnet", "vanilla"] and result.starts[1:] == ["resnet/0001", "noise-2:vanilla"]
    with zoo_of(run) as zoo:
        assert result.teacher == f"{teacher_path(zoo.path)}:lenetlike/0000"  # the zoo's own
    assert result.accuracy_network[2] is None and result.accuracy_network[0] is not None
    assert weights == (run / "checkpoints" / "best.safetensors").read_bytes()
    # what was written is what was told
    assert [Path(file).name for file in result.networks] == [
        "00-lenet.safetensors",
        "01-resnet.safetensors",
        "02-vanilla.safetensors",
    ]
    for file, arch, score in zip(result.networks, result.arch, result.accuracy_after, strict=True):
        assert written(run, file, arch) == pytest.approx(score, abs=1.5 / 500)
    kept, space = load_file(tmp_path / "out" / "latents.safetensors"), Space.load(run)
    assert kept["latents"].shape == (3, 64) and kept["class_ids"].tolist() == [0, 2, 1]
    assert torch.equal(load_file(result.latent)["latent"], kept["latents"][result.best])
    best = load_file(result.network)
    for name, value in space.decode(kept["latents"][result.best], result.arch[result.best]).state_dict().items():
        torch.testing.assert_close(best[name], value, rtol=1e-4, atol=1e-5)


def test_nothing_is_kept_that_the_head_takes_for_another(run: Path, tmp_path: Path) -> None:
    space = Space.load(run)
    result = optimize(run, config("best:lenet", "best:resnet", classid=0.0, learning_rate=3.0), tmp_path / "out")
    kept = load_file(tmp_path / "out" / "latents.safetensors")
    with zoo_of(run) as zoo:
        starts = [resolve(name, space, zoo) for name in result.starts]
    for start, latent in zip(starts, kept["latents"], strict=True):
        moved = not torch.equal(latent, start.latent)
        assert not moved or int(space.class_ids(latent[None])) == start.class_id


def test_the_heads_loss_draws_a_start_to_its_class(run: Path, tmp_path: Path) -> None:
    """A point that the head takes for another architecture is brought to be one of its own."""
    space = Space.load(run)
    with zoo_of(run) as zoo:
        task, master = task_of(zoo, "cpu"), teacher("best", zoo, task_of(zoo, "cpu"))
        latent = resolve("best:resnet", space, zoo).latent
    stranger = Named("stranger", 0, latent, None)
    search = Search(space, config("x", classid=100.0), task, master, [stranger], [space.family[0]], torch.ones(1, 64))

    def share() -> float:
        assert space.model.head is not None
        return float(space.model.head(search.latents.detach())[0].softmax(-1)[0])

    before = share()
    for number in range(10):
        (search.moved.grad,) = torch.autograd.grad(search.loss(number), search.moved)
        search.optimizer.step()
    assert share() > before + 0.02


def test_a_better_network_of_another_architecture_does_not_count(run: Path, tmp_path: Path) -> None:
    """Nor does it use up the patience: what the head takes for another is no start's best."""
    space = Space.load(run)
    with zoo_of(run) as zoo:
        task, master = task_of(zoo, "cpu"), teacher("best", zoo, task_of(zoo, "cpu"))
        ends = [resolve(name, space, zoo).latent for name in ("best:resnet", "best:lenet")]
    assert space.class_ids(torch.stack(ends)).tolist() == [2, 0]
    search = Search(
        space, config("x"), task, master, [Named("stranger", 0, ends[0], None)], [space.family[0]], torch.ones(1, 64)
    )
    assert not search.validate(0, None) and search.best_accuracy.tolist() == [-1]
    with torch.no_grad():
        search.moved.copy_(ends[1] - ends[0])  # now it is what it should be, and no better than the stranger
    assert search.validate(10, None) and search.best_accuracy[0] >= 0
    assert [record["better"] for record in search.curve] == [[False], [True]] and search._stale() == 0
    assert not search.validate(20, None) and search._stale() == 1


def test_a_search_goes_on_exactly(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = optimize(run, config(*STARTS), tmp_path / "whole")
    save = app.write_torch

    def dying(path: Path, state: dict[str, Any]) -> None:
        save(path, state)
        raise KeyboardInterrupt

    with monkeypatch.context() as inner, pytest.raises(KeyboardInterrupt):
        inner.setattr(app, "write_torch", dying)
        optimize(run, config(*STARTS), tmp_path / "out")
    result = optimize(run, config(*STARTS), tmp_path / "out", resume=True)
    assert result.curve == whole.curve and result.accuracy_after == whole.accuracy_after
    first, second = (load_file(tmp_path / name / "latents.safetensors") for name in ("whole", "out"))
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_starts_are_improved_as_if_alone(run: Path, tmp_path: Path) -> None:
    both = optimize(run, config("worst:resnet", "best:lenet"), tmp_path / "both")
    alone = optimize(run, config("worst:resnet"), tmp_path / "alone")
    for one, two in zip(both.curve, alone.curve, strict=True):
        assert one.accuracy_val[0] == pytest.approx(two.accuracy_val[0], abs=0.02)


def test_noise_of_an_architecture_never_shown(unseen: Path, tmp_path: Path) -> None:
    result = optimize(unseen, config("noise:declared", steps=2), tmp_path / "out")
    assert result.arch == ["declared"] and np.isfinite(result.accuracy_after).all()
    assert written(unseen, result.network, "declared") == pytest.approx(result.accuracy_after[0], abs=1.5 / 500)


def test_of_which_architecture_the_noise_is_has_to_be_said(run: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError) as result:
        optimize(run, config("noise"), tmp_path / "out")
    assert str(result.value) == (
        "this space holds networks of lenet, vanilla, resnet: say of which the noise is (noise:lenet)"
    )
    with pytest.raises(NetspaceError, match=r"unknown architecture 'lenett'"):
        optimize(run, config("noise:lenett"), tmp_path / "out")
    assert not (tmp_path / "out").exists()
