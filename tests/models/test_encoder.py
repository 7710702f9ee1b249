"""Encoders: the paper's size, any PRep, and what each does and does not see."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from netspace import archs
from netspace.errors import UsageError
from netspace.models.encoders import POSITION_WEIGHT, ConvEncoder, ProbeEncoder
from netspace.networks.batch import NetBatch
from netspace.networks.prep import flatten, height, pack, unflatten, unpack
from netspace.networks.spec import NetSpec


def size(module: nn.Module) -> int:
    return sum(value.numel() for value in module.parameters())


@pytest.fixture(scope="module")
def nets() -> NetBatch:
    settings = {"channels": 1, "image_size": 8, "classes": 5, "width": 0.5}
    skeleton = archs.skeleton("lenetlike", settings, (1, 8, 8))
    return NetBatch(skeleton, NetSpec.from_module(skeleton, "lenetlike", settings, (1, 8, 8)), "loop")


def some_preps(nets: NetBatch, count: int = 4) -> Tensor:
    rows = []
    for seed in range(count):
        torch.manual_seed(seed)
        net = archs.build("lenetlike", channels=1, image_size=8, classes=5, width=0.5)
        rows.append(flatten({name: value.detach() for name, value in net.named_parameters()}, nets.spec))
    return pack(torch.stack(rows), (8, -(-nets.spec.num_parameters // 64) * 8))


def test_the_paper_encoder_has_its_number_of_parameters() -> None:
    """NetSpace, at E = 4096."""
    assert size(ConvEncoder(4096)) == 6_788_352


@pytest.mark.parametrize("latent", [32, 64, 256])
@pytest.mark.parametrize("shape", [(4, 8), (8, 104), (12, 40)])
def test_any_prep_gives_a_latent(latent: int, shape: tuple[int, int]) -> None:
    latents = ConvEncoder(latent)(torch.randn(3, *shape))
    assert latents.shape == (3, latent) and latents.isfinite().all()


def test_conv_encoder_by_hand_in_float64() -> None:
    torch.manual_seed(0)
    encoder = ConvEncoder(64).double()
    prep = torch.randn(2, 8, 24, dtype=torch.float64)
    a, b, c, d = (layer for layer in encoder.modules() if isinstance(layer, nn.Conv2d))
    x = prep[:, None]
    x = F.leaky_relu(F.conv2d(F.pad(x, (1, 1)), a.weight, a.bias, stride=(1, 2)), 0.01)
    x = F.leaky_relu(F.conv2d(F.pad(x, (1, 1)), b.weight, b.bias, stride=(1, 2)), 0.01)
    x = x.max(dim=3, keepdim=True).values
    x = F.leaky_relu(F.conv2d(F.pad(x, (0, 0, 1, 1)), c.weight, c.bias), 0.01)
    x = F.leaky_relu(F.conv2d(F.pad(x, (0, 0, 1, 1)), d.weight, d.bias), 0.01)
    torch.testing.assert_close(encoder(prep), x.max(dim=2).values[..., 0], rtol=1e-12, atol=1e-12)


def test_members_of_a_batch_do_not_meet() -> None:
    torch.manual_seed(0)
    encoder, preps = ConvEncoder(64).double(), torch.randn(4, 8, 32).double()
    one_by_one = torch.cat([encoder(prep[None]) for prep in preps])
    torch.testing.assert_close(encoder(preps), one_by_one, rtol=1e-12, atol=1e-12)


def test_spread_divides_the_prep_and_lies_in_the_state() -> None:
    torch.manual_seed(0)
    spread, preps = torch.rand(4, 8) + 0.5, torch.randn(2, 4, 8)
    plain, scaled = ConvEncoder(32), ConvEncoder(32, spread)
    scaled.load_state_dict({**plain.state_dict(), "spread": spread})
    torch.testing.assert_close(scaled(preps * spread), plain(preps))
    assert not torch.allclose(scaled(preps), plain(preps))
    assert "spread" in scaled.state_dict() and size(scaled) == size(plain)


@pytest.mark.parametrize("latent", [0, -32, 16, 100])
def test_other_latent_sizes_are_refused(latent: int) -> None:
    with pytest.raises(UsageError, match=rf"latent size that is a multiple of 32, not {latent}"):
        ConvEncoder(latent)


def test_conv_encoder_sees_where_neurons_stand_probe_encoder_what_they_do(nets: NetBatch) -> None:
    """Hidden neurons of fc1 in another order: another PRep, the same function."""
    preps = some_preps(nets)
    size_ = preps.shape[-2:]
    state = unflatten(unpack(preps, nets.spec.num_parameters), nets.spec)
    order = torch.randperm(state["fc1.bias"].shape[1], generator=torch.Generator().manual_seed(0))
    moved = {**state}
    for name in ("fc1.weight", "fc1.bias"):
        moved[name] = state[name][:, order]
    moved["fc2.weight"] = state["fc2.weight"][:, :, order]
    permuted = pack(flatten(moved, nets.spec), (size_[0], size_[1]))
    assert not torch.equal(permuted, preps)
    torch.manual_seed(0)
    conv, probe = ConvEncoder(64), ProbeEncoder(64, [nets], torch.randn(6, 1, 8, 8), 16, {0: preps})
    torch.testing.assert_close(probe(permuted), probe(preps), rtol=1e-3, atol=1e-5)
    moved_by = (conv(permuted) - conv(preps)).abs().max()
    assert moved_by > 100 * (conv(preps.flip(0)).flip(0) - conv(preps)).abs().max()  # far beyond rounding
    broken = {**moved, "fc2.weight": state["fc2.weight"]}  # the symmetry broken: another function
    other = pack(flatten(broken, nets.spec), (size_[0], size_[1]))
    assert not torch.allclose(probe(other), probe(preps), rtol=1e-2, atol=1e-3)


def test_probe_encoder_answers_are_centred_and_standardised(nets: NetBatch) -> None:
    preps = some_preps(nets)
    probe = ProbeEncoder(32, [nets], torch.randn(6, 1, 8, 8), 16, {0: preps})
    answers = probe.answers(preps)
    assert answers.shape == (4, 6 * 5)
    torch.testing.assert_close(answers.view(4, 6, 5).mean(-1), torch.zeros(4, 6), atol=1e-6, rtol=0)
    flat = unpack(preps, nets.spec.num_parameters)
    logits = nets(flat, probe.probes.detach())
    torch.testing.assert_close(answers.view(4, 6, 5), logits - logits.mean(-1, keepdim=True))
    torch.testing.assert_close(probe.mean, answers.mean(0))
    torch.testing.assert_close(probe.spread, answers.std(0, correction=0).mean())


def test_probes_are_learnt_and_the_skeleton_is_not(nets: NetBatch) -> None:
    preps = some_preps(nets)
    images = torch.randn(6, 1, 8, 8)
    probe = ProbeEncoder(32, [nets], images, 16, {0: preps})
    assert not [name for name, _ in probe.named_parameters() if "skeleton" in name or "nets" in name]
    assert {"probes", "mean", "spread"} <= set(probe.state_dict())
    probe(preps).square().sum().backward()
    assert all(value.grad is not None and value.grad.abs().sum() > 0 for value in probe.parameters())
    assert not any(value.requires_grad for value in nets.skeleton.parameters())
    probe.probes.data.zero_()
    assert images.abs().sum() > 0  # its own copy


def test_a_loaded_probe_encoder_needs_no_example(nets: NetBatch) -> None:
    preps = some_preps(nets)
    first = ProbeEncoder(32, [nets], torch.randn(6, 1, 8, 8), 16, {0: preps})
    second = ProbeEncoder(32, [nets], torch.zeros(6, 1, 8, 8), 16)
    second.load_state_dict(first.state_dict())
    assert torch.equal(first(preps), second(preps))


# ---- several architectures


@pytest.fixture(scope="module")
def both(nets: NetBatch) -> tuple[NetBatch, NetBatch]:
    """A smaller architecture and a larger one."""
    settings = {"channels": 1, "image_size": 8, "classes": 5, "width": 0.3}
    skeleton = archs.skeleton("resnet8", settings, (1, 8, 8))
    larger = NetBatch(skeleton, NetSpec.from_module(skeleton, "resnet8", settings, (1, 8, 8)), "loop")
    assert larger.spec.num_parameters > nets.spec.num_parameters
    return nets, larger


def of_each(both: tuple[NetBatch, NetBatch]) -> dict[int, Tensor]:
    torch.manual_seed(3)
    flats = [torch.randn(4, each.spec.num_parameters) * 0.1 for each in both]
    return {class_id: pack(flat, (height(flat.shape[1], 400), 400)) for class_id, flat in enumerate(flats)}


def test_architectures_of_several_heights_have_latents_of_one_size(both: tuple[NetBatch, NetBatch]) -> None:
    preps = of_each(both)
    assert preps[0].shape[1] < preps[1].shape[1]
    for encoder in (ConvEncoder(64), ProbeEncoder(64, both, torch.randn(6, 1, 8, 8), 16, preps)):
        for class_id, each in preps.items():
            latents = encoder(each, class_id)
            assert latents.shape == (4, 64) and latents.isfinite().all()


def test_the_spread_of_a_class_divides_its_rows() -> None:
    torch.manual_seed(0)
    spread, preps = torch.rand(3, 12, 16) + 0.5, torch.randn(2, 8, 16)
    plain, scaled = ConvEncoder(32), ConvEncoder(32, spread)
    scaled.load_state_dict({**plain.state_dict(), "spread": spread})
    for class_id in range(3):
        wanted = plain(preps / spread[class_id, :8])
        torch.testing.assert_close(scaled(preps, class_id), wanted)
    assert not torch.allclose(scaled(preps, 0), scaled(preps, 1))


def test_the_place_among_architectures_stands_beside_the_answers(both: tuple[NetBatch, NetBatch]) -> None:
    """From -1 for the smallest to 1 for the largest; networks that answer alike are told apart by it alone."""
    torch.manual_seed(0)
    preps = of_each(both)
    three = ProbeEncoder(32, [both[0], both[0], both[1]], torch.randn(6, 1, 8, 8), 16)
    torch.testing.assert_close(three.answers(preps[0], 0), three.answers(preps[0], 1))
    first = three.read[0]
    assert isinstance(first, nn.Linear) and first.in_features == 6 * 5 + 1
    heard: list[Tensor] = []
    first.register_forward_hook(lambda _, given, __: heard.append(given[0]))
    latents = [three(preps[0], 0), three(preps[0], 1), three(preps[1], 2)]
    assert [row[0, -1].item() for row in heard] == [-POSITION_WEIGHT, 0, POSITION_WEIGHT]
    assert torch.equal(heard[0][:, :-1], heard[1][:, :-1]) and not torch.allclose(latents[0], latents[1])


def test_of_one_architecture_there_is_no_place(nets: NetBatch) -> None:
    first = ProbeEncoder(32, [nets], torch.randn(6, 1, 8, 8), 16).read[0]
    assert isinstance(first, nn.Linear) and first.in_features == 6 * 5


def test_answers_are_standardised_over_the_examples_of_all(both: tuple[NetBatch, NetBatch]) -> None:
    preps = of_each(both)
    probe = ProbeEncoder(32, both, torch.randn(6, 1, 8, 8), 16, preps)
    answers = torch.cat([probe.answers(preps[class_id], class_id) for class_id in (0, 1)])
    torch.testing.assert_close(probe.mean, answers.mean(0))
    torch.testing.assert_close(probe.spread, answers.std(0, correction=0).mean())


def test_rows_of_zeros_tell_a_padded_encoder_the_height() -> None:
    """NetSpace, several architectures: the encoder reads every PRep at the largest height, zeros below (authors' code)."""
    torch.manual_seed(0)
    own, padded = ConvEncoder(32).double(), ConvEncoder(32, rows=12).double()
    padded.load_state_dict(own.state_dict())
    low, high = torch.randn(2, 4, 16).double(), torch.randn(2, 12, 16).double()
    assert torch.equal(padded(high), own(high)) and not torch.allclose(padded(low), own(low))


@pytest.mark.parametrize("rows", [4, 8, 12, 40])
def test_all_empty_rows_but_a_few_give_the_same_latents_and_gradients(rows: int) -> None:
    """The encoder computes few of them; values and gradients are those of the whole padded PRep."""
    for seed in range(5):
        torch.manual_seed(seed)
        own, padded = ConvEncoder(64).double(), ConvEncoder(64, rows=rows).double()
        padded.load_state_dict(own.state_dict())
        preps, weights = torch.randn(3, 4, 16).double(), torch.randn(3, 64).double()
        whole = torch.nn.functional.pad(preps, (0, 0, 0, rows - 4))
        for encoder, given in ((own, whole), (padded, preps)):
            (encoder(given) * weights).sum().backward()
        torch.testing.assert_close(padded(preps), own(whole), rtol=1e-13, atol=1e-13)
        for mine, theirs in zip(padded.parameters(), own.parameters(), strict=True):
            torch.testing.assert_close(mine.grad, theirs.grad, rtol=1e-12, atol=1e-12)


def test_a_padded_encoder_divides_by_the_spread_of_the_class() -> None:
    torch.manual_seed(0)
    spread, preps = torch.rand(2, 8, 16) + 0.5, torch.randn(3, 4, 16)
    encoder, plain = ConvEncoder(32, spread, rows=8), ConvEncoder(32, rows=8)
    plain.load_state_dict({**encoder.state_dict(), "spread": torch.ones(1, 1)})
    torch.testing.assert_close(encoder(preps, 1), plain(preps / spread[1, :4]))
