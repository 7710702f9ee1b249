"""Latents refined as they are read: by what networks answer to the encoder's own probes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from netspace.errors import UsageError
from netspace.networks.prep import unpack
from netspace.space import Space
from netspace.training import descent
from netspace.training.latent_space import train
from netspace.training.recipe import SpaceRecipe
from netspace.zoo import Zoo

PROBE = {"latent": 64, "decoder": {"kind": "linear"}}


def reading(run: Path, **encoder: Any) -> Space:
    """A space whose recipe has other settings of its encoder."""
    space = Space.load(run)
    space.recipe = space.recipe.model_copy(update={"encoder": space.recipe.encoder.model_copy(update=encoder)})
    return space


def preps_of(zoo: Path, arch: str | None = None) -> torch.Tensor:
    with Zoo(zoo) as opened:
        group = opened.only() if arch is None else opened.group(arch)
        return group.read(range(5))


def misses(space: Space, latents: torch.Tensor, preps: torch.Tensor) -> torch.Tensor:
    """The squared difference (M,) of answers to the probes, in float64."""
    nets, probes = space.family[0].nets, space.model.encoder.probes.double()
    nets_of = [unpack(each, nets.spec.num_parameters).double() for each in (space.decode_all(latents).preps, preps)]
    decoded, own = (nets(flat, probes) for flat in nets_of)
    return (decoded - own).square().mean((1, 2))


def test_refined_latents_answer_to_the_probes_more_like_their_networks(tiny_run: Path, tiny_zoo: Path) -> None:
    """Of every network; each by itself, the same again, and more of them with more steps."""
    preps = preps_of(tiny_zoo)
    plain, refined = Space.load(tiny_run).encode_preps(preps), reading(tiny_run, refine=10).encode_preps(preps)
    space = reading(tiny_run, refine=40)
    latents = space.encode_preps(preps)
    before, some, after = (misses(space, each, preps) for each in (plain, refined, latents))
    assert (after < 0.9 * before).all() and (some < before).all() and after.sum() < some.sum()
    assert not latents.requires_grad and torch.equal(latents, space.encode_preps(preps))
    few, probes = reading(tiny_run, refine=5), space.model.encoder.probes  # few steps: each makes more of rounding
    singly, together = torch.stack([few.encode(each) for each in preps]), few.encode_preps(preps)
    assert torch.allclose(few.functional(singly, probes), few.functional(together, probes), atol=1e-3)
    alone = torch.stack([space.encode(each) for each in preps])
    assert torch.allclose(misses(space, alone, preps), after, rtol=0.02)
    assert torch.equal(Space.load(tiny_run).encode_preps(preps), plain)
    with torch.no_grad():
        assert torch.equal(space.encode_preps(preps), latents)
    assert all(value.grad is None for value in space.model.parameters())
    assert space.encode([]).shape == (0, 64)


def test_as_many_networks_are_refined_at_once_as_memory_is_for(tiny_run: Path) -> None:
    space = Space.load(tiny_run)
    arch, probes = space.family[0], space.model.encoder.probes.detach()
    count = descent._networks_at_once(arch, probes)
    assert count > 1
    fewer = descent._networks_at_once(arch, probes.repeat(4, 1, 1, 1))
    assert count / 4 <= fewer < count / 2  # what is kept of weights does not grow with the inputs


def test_one_step_is_one_of_adam(tiny_run: Path, tiny_zoo: Path) -> None:
    """Against a few lines in float64: the first step of Adam is the rate times the sign of the gradient."""
    preps, plain, space = preps_of(tiny_zoo), Space.load(tiny_run), reading(tiny_run, refine=1, answers="classes")
    start = plain.encode_preps(preps)
    moved = start.clone().requires_grad_()
    terms, nets, probes = space.recipe.loss, space.family[0].nets, space.model.encoder.probes
    own, decoded = nets(unpack(preps, 1477), probes), nets(unpack(space.decode_all(moved).preps, 1477), probes)
    scale = terms.temperature * (own.std((1, 2), keepdim=True) if terms.relative else 1)
    apart = F.kl_div((decoded / scale).log_softmax(-1), (own / scale).softmax(-1), reduction="none").sum(-1)
    (gradient,) = torch.autograd.grad(apart.mean(1).sum(), moved)
    expected = start - 0.1 * start.std(1, keepdim=True) * gradient.sign()
    clear = gradient.abs() > gradient.abs().amax(1, keepdim=True) / 100
    assert torch.allclose(space.encode_preps(preps)[clear], expected[clear], rtol=1e-3, atol=1e-5)


def test_networks_of_several_architectures_stay_what_they_are(multi_run: Path, multi_zoo: Path) -> None:
    space = reading(multi_run, refine=15, answers="classes")
    for class_id, arch in enumerate(space.family):
        preps = preps_of(multi_zoo, arch.id)
        plain, latents = Space.load(multi_run).encode_preps(preps, arch.id), space.encode_preps(preps, arch.id)
        assert not torch.equal(plain, latents)
        known = space.class_ids(plain) == class_id
        assert (space.class_ids(latents)[known] == class_id).all()


def test_shapes_are_refined_at_their_probes(chairs_run: Path, chairs_zoo: Path) -> None:
    preps, space = preps_of(chairs_zoo), reading(chairs_run, refine=30)
    before, after = (misses(space, each.encode_preps(preps), preps) for each in (Space.load(chairs_run), space))
    assert (after < before).all()
    with pytest.raises(UsageError, match="networks of one output tell no classes apart"):
        reading(chairs_run, refine=2, answers="classes").encode_preps(preps)


def test_classes_of_one_output_are_refused_before_training(chairs_run: Path, chairs_zoo: Path, tmp_path: Path) -> None:
    recipe = Space.load(chairs_run).recipe
    encoder = recipe.encoder.model_copy(update={"refine": 2, "answers": "classes"})
    with pytest.raises(
        UsageError,
        match=r"networks of chairs have one output, which tells no classes apart: set encoder.answers=values",
    ):
        train(recipe.model_copy(update={"encoder": encoder}), chairs_zoo, tmp_path / "run")
    assert not (tmp_path / "run" / "config.yaml").exists()


@pytest.mark.parametrize("kind", ["conv", "token"])
def test_encoders_without_probes_cannot_refine(kind: str) -> None:
    settings = {**PROBE, "encoder": {"kind": kind, "refine": 3}}
    with pytest.raises(
        ValueError, match=rf"encoder.refine \(3\) takes encoder.kind probe, not {kind}: others have no inputs"
    ):
        SpaceRecipe.model_validate(settings)
    assert SpaceRecipe.model_validate({**PROBE, "encoder": {"kind": "probe", "refine": 3}}).encoder.refine == 3


def test_networks_are_read_where_the_caller_needs_no_gradients(multi_run: Path, multi_zoo: Path) -> None:
    space, preps = reading(multi_run, refine=3, answers="classes"), preps_of(multi_zoo, "resnet")
    expected = space.encode_preps(preps, "resnet")
    for mode in (torch.no_grad, torch.inference_mode):
        with mode():
            assert torch.equal(space.encode(preps + 0, "resnet"), expected)  # of a tensor made in this mode
