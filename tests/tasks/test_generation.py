"""Generation: the noise of an input, the bound by torch's distributions, likelihoods by quadrature, losses, pictures."""

from __future__ import annotations

import math
import re
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.distributions import Bernoulli, Normal, kl_divergence

from netspace import archs, losses
from netspace.errors import UsageError
from netspace.tasks import DataConfig, load, load_images
from netspace.tasks.base import SPLITS
from netspace.tasks.generation import Generation

PIXELS, LATENT = 64, 3


def generation(**changes: Any) -> Generation:
    task = load(DataConfig.model_validate({"name": "generation", "latent": LATENT, "limit": 50, **changes}))
    assert isinstance(task, Generation)
    return task


@pytest.fixture(scope="module")
def task() -> Generation:
    return generation()


def drawn(members: int, images: int) -> Tensor:
    """Outputs of networks, at random."""
    return torch.randn(
        members, images, PIXELS + 2 * LATENT, generator=torch.Generator().manual_seed(0), dtype=torch.float64
    )


def test_an_input_is_an_image_and_its_noise(task: Generation) -> None:
    images = load_images(DataConfig(name="digits", limit=50))
    assert (task.input_shape, task.num_outputs, task.output_shape) == ((67,), 70, (70,))
    assert task.arch_settings == {"channels": 1, "image_size": 8, "latent": 3}
    inputs = task.inputs("test", slice(4))
    assert torch.equal(inputs[:, :64], images.inputs("test", slice(4)).flatten(1))
    assert torch.equal(inputs, generation().inputs("test", slice(4)))
    assert not torch.equal(inputs[:, 64:], task.inputs("val", slice(4))[:, 64:])
    index = torch.tensor([[3, 1], [0, 2]])
    assert torch.equal(task.inputs("test", index)[1, 1], inputs[2])
    assert torch.equal(task.targets("test", index)[0, 0], images.test.images[3].flatten().float() / 255)
    noise = torch.cat([task.inputs(split, slice(None))[:, 64:] for split in SPLITS])
    assert abs(float(noise.mean())) < 0.1 and float(noise.std()) == pytest.approx(1, abs=0.1)


def test_training_draws_new_noise_from_its_stream(task: Generation) -> None:
    index = torch.tensor([[3, 1], [0, 2]])
    draws = task.draw_augmentation(50, torch.Generator().manual_seed(1))
    assert task.augments and draws.shape == (3, 50)
    augmented = task.augmented(index, torch.stack([draws[:, :2], draws[:, 2:4]]), torch.tensor([0, 1]))
    assert torch.equal(augmented[..., :64], task.inputs("train", index)[..., :64])
    assert torch.equal(augmented[1, 0, 64:], draws[:, 2])
    once, again, other = (task.random_inputs(index[0], torch.Generator().manual_seed(seed)) for seed in (1, 1, 2))
    assert torch.equal(once, again) and not torch.equal(once, other)


def test_the_loss_is_the_negative_bound(task: Generation) -> None:
    """Of pixels that are black or white by torch's distributions; grey ones are the mean over both."""
    (outputs,) = drawn(1, 5)
    logits, mean, log_variance = outputs.split([PIXELS, LATENT, LATENT], 1)
    white = torch.rand(5, PIXELS, generator=torch.Generator().manual_seed(1), dtype=torch.float64).round()
    prior = Normal(torch.zeros(()).double(), torch.ones(()).double())
    kl = kl_divergence(Normal(mean, log_variance.mul(0.5).exp()), prior).sum(1)
    expected = Bernoulli(logits=logits).log_prob(white).sum(1) - kl
    torch.testing.assert_close(task.bound(outputs, white), expected)
    assert float(task.training_loss(outputs, white)) == pytest.approx(-float(expected.mean()))
    grey = 0.3 * white + 0.7 * (1 - white)
    mixed = 0.3 * task.bound(outputs, white) + 0.7 * task.bound(outputs, 1 - white)
    torch.testing.assert_close(task.bound(outputs, grey), mixed)


def test_scores_are_likelihoods_of_a_pixel_over_the_whole_split(
    task: Generation, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("netspace.tasks.base.CHUNK", 64)
    torch.manual_seed(0)
    nets = [archs.build("conv_vae", **task.arch_settings, width=0.1).eval() for _ in range(2)]

    def networks(x: Tensor) -> Tensor:
        return torch.stack([net(x) for net in nets])

    seeds, truth = torch.tensor([-1, -1]), task.targets("test", slice(None))
    with torch.no_grad():
        outputs = networks(task.inputs("test", slice(None)))
    elbo = task.bound(outputs, truth).double().mean(1)
    scores = task.evaluate(networks, "test", seeds)
    torch.testing.assert_close(scores, (elbo / 64).exp())
    torch.testing.assert_close(task.score(outputs, truth), scores)
    assert task.higher_is_better and ((scores > 0) & (scores < 1)).all()
    found = task.assess(networks, "test", seeds, samples=4)
    assert list(found) == ["likelihood per pixel", "elbo", "nll", "mse"]
    torch.testing.assert_close(found["elbo"], elbo)
    torch.testing.assert_close(found["mse"], (outputs[..., :64].sigmoid() - truth).double().square().mean((1, 2)))
    assert all(
        torch.equal(value, task.assess(networks, "test", seeds, samples=4)[name]) for name, value in found.items()
    )
    alone = task.assess(lambda x: nets[1](x)[None], "test", seeds[:1], samples=4)
    torch.testing.assert_close(alone["nll"], found["nll"][1:])


def test_likelihoods_are_those_of_quadrature() -> None:
    """One latent value; the recognition model is deliberately not the posterior, so that the bound is loose."""
    task = generation(latent=1)
    slope, offset = torch.linspace(-2, 2, PIXELS), torch.linspace(1, -1, PIXELS)
    x = task.targets("test", slice(3)).double()
    mean = torch.tensor([0.5, -0.3, 0.0])

    def network(inputs: Tensor) -> Tensor:
        spread = math.log(0.6)
        z = mean[: len(inputs), None] + math.exp(spread / 2) * inputs[:, PIXELS:]
        parts = [slope * z + offset, mean[: len(inputs), None], torch.full((len(inputs), 1), spread)]
        return torch.cat(parts, 1)[None]

    grid = torch.linspace(-8, 8, 20_001, dtype=torch.float64)[:, None, None]
    joint = (
        losses.pixel_log_likelihood((slope * grid + offset).expand(-1, 3, -1), x)
        - 0.5 * grid[..., 0].square()
        - 0.5 * math.log(2 * math.pi)
    )
    exact = -float((joint.logsumexp(0) + math.log(16 / 20_000)).mean())
    seeds = torch.tensor([-1])
    few, many = (float(task.assess(network, "test", seeds, 3, samples=count)["nll"]) for count in (1, 2000))
    bound = -float(task.assess(network, "test", seeds, 3, samples=1)["elbo"])
    assert many == pytest.approx(exact, abs=0.03)
    assert bound > exact + 0.05 and few != pytest.approx(exact, abs=0.03)


def test_how_far_one_autoencoder_is_from_another(task: Generation) -> None:
    p, t = drawn(2, 5)
    (p_logits, p_mean, p_log), (t_logits, t_mean, t_log) = (each.split([PIXELS, LATENT, LATENT], 1) for each in (p, t))
    pixels = kl_divergence(Bernoulli(logits=t_logits), Bernoulli(logits=p_logits)).sum(1)
    latents = kl_divergence(Normal(t_mean, t_log.mul(0.5).exp()), Normal(p_mean, p_log.mul(0.5).exp())).sum(1)
    expected = float((pixels + latents).mean())
    assert float(task.divergence(p[None], t[None])) == pytest.approx(expected)
    assert float(task.behaviour_loss(p, t)) == pytest.approx(expected, rel=1e-5)
    assert float(task.behaviour_loss(p, p)) == pytest.approx(0, abs=1e-4)
    assert float(task.agreement(p, p)) == 1 > float(task.agreement(p, t))


def test_pictures_show_originals_reconstructions_and_samples(task: Generation) -> None:
    net, index = archs.build("conv_vae", **task.arch_settings, width=0.1).eval(), torch.tensor([4, 0])
    rows, again = (task.pictures(net, "test", index) for _ in range(2))
    assert list(rows) == ["original", "reconstruction", "sample"]
    assert {row.shape for row in rows.values()} == {(2, 8, 8, 3)}
    assert np.array_equal(rows["original"][0, ..., 1], load_images("digits").test.images[4, 0].numpy())
    assert all(np.array_equal(row, again[name]) for name, row in rows.items())
    assert list(task.pictures(lambda x: net(x), "test", index)) == ["original", "reconstruction"]


def test_colour_images_keep_their_channels() -> None:
    task = generation(images="generated", image_size=8, channels=3, classes=2, latent=2)
    assert task.input_shape == (3 * 64 + 2,) and task.arch_settings["channels"] == 3
    net = archs.build("conv_vae", **task.arch_settings, width=0.1).eval()
    original = task.pictures(net, "val", torch.tensor([1]))["original"]
    assert np.array_equal(original[0], task.images.val.images[1].permute(1, 2, 0).numpy())


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"flip": True}, "data set 'generation' has no setting flip: leave it out."),
        ({"images": "pictures"}, "data.images names a data set of images, and 'pictures' is another task"),
        ({"latent": 0}, "latent"),
    ],
)
def test_settings_that_do_not_apply_are_told(changes: dict[str, Any], words: str) -> None:
    with pytest.raises((UsageError, ValueError), match=re.escape(words)):
        generation(**changes)
