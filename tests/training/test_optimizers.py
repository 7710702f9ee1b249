"""The space's optimiser against torch's own, its schedule, its state, and the averaged weights."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from torch import Tensor, nn

from netspace.models.autoencoder import AutoEncoder
from netspace.models.decoders import ConvDecoder
from netspace.models.encoders import ConvEncoder
from netspace.training.optimizers import Average, Muon, Optimizer, OptimizerConfig

EXACT = {"rtol": 1e-12, "atol": 1e-12}


def model(seed: int = 0) -> AutoEncoder:
    torch.manual_seed(seed)
    return AutoEncoder(ConvEncoder(64), ConvDecoder(64, (4, 16)), torch.ones(4, 16)).double()


def loss(net: nn.Module, number: int) -> Tensor:
    preps = torch.randn(3, 4, 16, dtype=torch.float64, generator=torch.Generator().manual_seed(number))
    latents = net.encoder(preps)
    decoded = net.decoder(latents)
    return (100 * decoded - preps).square().mean() + latents.square().mean()


def train(net: nn.Module, optimizer: Optimizer, start: int, stop: int) -> None:
    for number in range(start, stop):
        loss(net, number).backward()
        optimizer.step(number)


def assert_equal(one: nn.Module, two: nn.Module, **tolerance: float) -> None:
    for (name, a), b in zip(one.named_parameters(), two.parameters(), strict=True):
        torch.testing.assert_close(a, b, msg=lambda text, name=name: f"{name}: {text}", **(tolerance or EXACT))


def test_adam_is_torchs_with_a_rate_of_its_own_for_the_last_scale_and_bias() -> None:
    config = OptimizerConfig(learning_rate=1e-3, elementwise_rate=1e-2, betas=(0.8, 0.95))
    net = model()
    other = copy.deepcopy(net)
    train(net, Optimizer(net, config, 10), 0, 10)
    last = [other.decoder.scale, other.decoder.bias]
    rest = [value for value in other.parameters() if not any(value is held for held in last)]
    adams = [
        torch.optim.Adam(rest, lr=1e-3, betas=(0.8, 0.95)),
        torch.optim.Adam(last, lr=1e-2, betas=(0.8, 0.95)),
    ]  # type: ignore[list-item]
    for number in range(10):
        other.zero_grad()
        loss(other, number).backward()
        for adam in adams:
            adam.step()
    assert_equal(net, other, rtol=1e-9, atol=1e-12)
    assert not torch.equal(net.decoder.scale, model().decoder.scale)


def test_muon_steps_every_matrix_as_a_reshaped_copy_is() -> None:
    config = OptimizerConfig(name="muon", muon_rate=0.02, learning_rate=1e-3)
    net = model().float()
    start = copy.deepcopy(net)
    optimizer = Optimizer(net, config, 5)
    copies = {
        name: nn.Parameter(value.detach().clone().flatten(1))
        for name, value in net.named_parameters()
        if name.endswith("weight")
    }
    assert len(copies) == 8
    muon = Muon(copies.values(), lr=0.02)
    others = {
        name: nn.Parameter(value.detach().clone()) for name, value in net.named_parameters() if name not in copies
    }
    adam = torch.optim.Adam(list(others.values()), lr=1e-3)
    for number in range(5):
        preps = torch.randn(3, 4, 16, generator=torch.Generator().manual_seed(number))
        latents = net.encoder(preps)
        decoded = net.decoder(latents)
        ((100 * decoded - preps).square().mean() + latents.square().mean()).backward()
        for name, value in net.named_parameters():
            assert value.grad is not None
            (copies.get(name) if name in copies else others[name]).grad = value.grad.reshape(  # type: ignore[union-attr]
                (copies.get(name) if name in copies else others[name]).shape  # type: ignore[union-attr]
            ).clone()
        optimizer.step(number)
        muon.step()
        adam.step()
        for name, value in net.named_parameters():
            expected = copies[name].view_as(value) if name in copies else others[name]
            torch.testing.assert_close(value, expected, rtol=1e-5, atol=1e-7)
    for name, value in net.named_parameters():
        assert not torch.equal(value, dict(start.named_parameters())[name]), name  # the views are of the model's memory


def test_muon_trains_a_model_of_matrices_alone() -> None:
    """There is nothing for Adam."""
    torch.manual_seed(0)
    net = nn.Linear(3, 3, bias=False)
    first, optimizers = net.weight.detach().clone(), [Optimizer(net, OptimizerConfig(name="muon"), 4) for _ in range(2)]
    net(torch.ones(2, 3)).square().sum().backward()
    optimizers[0].step(0)
    optimizers[1].load_state_dict(optimizers[0].state_dict())
    assert not torch.equal(net.weight, first) and len(optimizers[1].state_dict()["parts"]) == 1


def test_the_model_stays_plain_and_its_weights_can_be_loaded_under_the_optimiser() -> None:
    net, other = model().float(), model(1).float()
    names = list(net.state_dict())
    optimizer = Optimizer(net, OptimizerConfig(name="muon"), 5)
    assert list(net.state_dict()) == names and isinstance(net.decoder.emit, nn.Conv2d)
    net.load_state_dict(other.state_dict())
    for value, view in optimizer.views:
        assert torch.equal(view, value.flatten(1)) and view.data_ptr() == value.data_ptr()


@pytest.mark.parametrize("name", ["adam", "muon", "ranger", "soap"])
def test_a_state_dict_goes_on_exactly(name: str) -> None:
    config = OptimizerConfig(name=name, schedule="cosine", warmup=3, clip=0.5)  # type: ignore[arg-type]
    through, first = model().float(), model().float()

    def go(net: nn.Module, optimizer: Optimizer, start: int, stop: int) -> None:
        for number in range(start, stop):
            preps = torch.randn(3, 4, 16, generator=torch.Generator().manual_seed(number))
            (100 * net.decoder(net.encoder(preps)) - preps).square().mean().backward()
            optimizer.step(number)

    go(through, Optimizer(through, config, 8), 0, 8)
    optimizer = Optimizer(first, config, 8)
    go(first, optimizer, 0, 4)
    held = copy.deepcopy({"model": first.state_dict(), "optimizer": optimizer.state_dict()})
    second = model(1).float()
    optimizer = Optimizer(second, config, 8)
    second.load_state_dict(held["model"])
    optimizer.load_state_dict(held["optimizer"])
    go(second, optimizer, 4, 8)
    for a, b in zip(through.parameters(), second.parameters(), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("decay", [0.0, 0.1])
def test_ranger_is_radam_whose_weights_go_half_way_back_every_six_steps(decay: float) -> None:
    net = model()
    other = copy.deepcopy(net)
    config = OptimizerConfig(name="ranger", learning_rate=1e-3, betas=(0.5, 0.999), weight_decay=decay)
    train(net, Optimizer(net, config, 20), 0, 14)
    settings = {"lr": 1e-3, "betas": (0.5, 0.999), "eps": 1e-5, "weight_decay": decay, "decoupled_weight_decay": True}
    radam = torch.optim.RAdam(other.parameters(), **settings)  # type: ignore[arg-type]
    slow = [value.detach().clone() for value in other.parameters()]
    for number in range(14):
        other.zero_grad()
        loss(other, number).backward()
        radam.step()
        if number % 6 == 5:
            for value, held in zip(other.parameters(), slow, strict=True):
                value.data.copy_(held.lerp_(value.data, 0.5))
    assert_equal(net, other, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("name", ["adam", "muon", "soap"])
def test_weight_decay_takes_a_fraction_of_all_weights_away_before_the_step(name: str) -> None:
    """As AdamW does: of the rate that the schedule gives, Muon's for its matrices."""
    nets = [model() for _ in range(2)]
    plain, decayed = (
        Optimizer(net, OptimizerConfig(name=name, learning_rate=1e-3, schedule="cosine", weight_decay=decay), 4)  # type: ignore[arg-type]
        for net, decay in zip(nets, (0.0, 0.5), strict=True)
    )
    before = [value.detach().clone() for value in nets[0].parameters()]
    muon = {id(value) for value, _ in decayed.views}
    rates = [0.01 if id(value) in muon else 1e-3 for value in nets[1].parameters()]
    for net, optimizer in zip(nets, (plain, decayed), strict=True):
        loss(net, 0).backward()
        optimizer.step(1)
    factor = OptimizerConfig(schedule="cosine").factor(1, 4)
    assert (name == "muon") == bool(muon)
    for value, other, start, rate in zip(nets[0].parameters(), nets[1].parameters(), before, rates, strict=True):
        torch.testing.assert_close(value - other, start * rate * factor * 0.5, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("name", ["ranger", "soap"])
def test_the_librarys_optimisers_have_our_settings_and_lower_the_loss(name: str) -> None:
    net = model()
    config = OptimizerConfig(name=name, learning_rate=1e-3, betas=(0.5, 0.99), schedule="cosine")  # type: ignore[arg-type]
    optimizer = Optimizer(net, config, 30)
    before = float(loss(net, 0).detach())
    train(net, optimizer, 0, 30)
    (part,) = optimizer.parts
    assert all(group["betas"] == (0.5, 0.99) and group["weight_decay"] == 0 for group in part.param_groups)
    assert part.param_groups[0]["lr"] == pytest.approx(1e-3 * config.factor(29, 30))
    assert float(loss(net, 0).detach()) < 0.9 * before


def test_clipping_bounds_the_gradients_norm() -> None:
    net = model()
    other = copy.deepcopy(net)
    optimizer = Optimizer(net, OptimizerConfig(learning_rate=1e-3, clip=1e-3), 1)
    adam = torch.optim.Adam(other.parameters(), lr=1e-3)
    loss(net, 0).backward()
    loss(other, 0).backward()
    norm = torch.cat([value.grad.flatten() for value in other.parameters()]).norm()  # type: ignore[union-attr]
    assert norm > 1e-3
    for value in other.parameters():
        value.grad.mul_(1e-3 / (norm + 1e-6))  # type: ignore[union-attr]
    optimizer.step(0)
    adam.step()
    assert_equal(net, other, rtol=1e-9, atol=1e-12)
    assert all(value.grad is None for value in net.parameters())


def test_schedules() -> None:
    assert [OptimizerConfig().factor(step, 10) for step in (0, 5, 9)] == [1.0, 1.0, 1.0]
    warm = OptimizerConfig(warmup=4)
    assert [warm.factor(step, 10) for step in range(5)] == [0.25, 0.5, 0.75, 1.0, 1.0]
    cosine = OptimizerConfig(schedule="cosine")
    assert [cosine.factor(step, 10) for step in (0, 5)] == pytest.approx([1.0, 0.5])
    assert cosine.factor(9, 10) == pytest.approx((1 + math.cos(0.9 * math.pi)) / 2)
    both = OptimizerConfig(schedule="cosine", warmup=2)
    assert both.factor(0, 10) == pytest.approx(0.5) and both.factor(5, 10) == pytest.approx(0.5)


def test_the_rates_follow_the_schedule() -> None:
    net = model()
    optimizer = Optimizer(net, OptimizerConfig(learning_rate=1.0, elementwise_rate=3.0, warmup=4), 10)
    loss(net, 0).backward()
    assert optimizer.step(1) == 0.5
    assert [group["lr"] for part in optimizer.parts for group in part.param_groups] == [0.5, 1.5]
    loss(net, 0).backward()
    optimizer.step(9)  # from the peak, not from where it was
    assert [group["lr"] for part in optimizer.parts for group in part.param_groups] == [1.0, 3.0]


def test_what_needs_no_gradient_is_left_alone() -> None:
    net = model()
    net.encoder.requires_grad_(False)
    before = copy.deepcopy(net.encoder.state_dict())
    train(net, Optimizer(net, OptimizerConfig(learning_rate=0.1), 2), 0, 2)
    for name, value in net.encoder.state_dict().items():
        assert torch.equal(value, before[name])


def test_the_average_by_its_formula() -> None:
    net = nn.Linear(2, 1).double()
    average = Average(net, decay=0.9)
    slow = {name: value.clone() for name, value in net.state_dict().items()}
    for step in range(150):
        with torch.no_grad():
            for value in net.parameters():
                value.add_(torch.randn_like(value))
        average.update(net, step)
        decay = min(0.9, (step + 1) / (step + 10))
        for name, value in net.state_dict().items():
            slow[name] = decay * slow[name] + (1 - decay) * value
    for name, value in average.values.items():
        torch.testing.assert_close(value, slow[name], **EXACT)
        assert not torch.equal(value, net.state_dict()[name]) and not value.requires_grad


def test_the_average_of_what_stays_stays() -> None:
    net = nn.BatchNorm2d(3)  # has a count, which is no average
    average = Average(net, decay=0.99)
    before = copy.deepcopy(average.values)
    for step in range(5):
        average.update(net, step)
    for name, value in average.values.items():
        assert torch.equal(value, before[name])
    net.load_state_dict(average.values)
