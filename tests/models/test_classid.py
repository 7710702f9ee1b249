"""The ClassId head: the layers of NetSpace's supplement, by shape, by number of parameters and by hand."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from netspace.models.autoencoder import ClassIdHead


@pytest.mark.parametrize("latent", [16, 64, 144, 4096])
@pytest.mark.parametrize("classes", [2, 4, 7])
def test_logits_and_number_of_parameters(latent: int, classes: int) -> None:
    """NetSpace, Suppl. I: one convolution (3 x 3, 1 -> 10 channels, stride 2) and one linear layer."""
    head = ClassIdHead(latent, classes)
    assert head(torch.randn(3, latent)).shape == (3, classes)
    side = round(latent**0.5) // 2
    convolution, linear = 10 * (3 * 3 + 1), classes * (10 * side * side + 1)
    assert sum(value.numel() for value in head.parameters()) == convolution + linear


def test_the_head_by_hand_in_float64() -> None:
    torch.manual_seed(0)
    head, latents = ClassIdHead(64, 4).double(), torch.randn(5, 64, dtype=torch.float64)
    image = latents.reshape(5, 1, 8, 8)
    seen = F.leaky_relu(F.conv2d(image, head.conv.weight, head.conv.bias, stride=2, padding=1), 0.01)
    assert seen.shape == (5, 10, 4, 4)
    wanted = seen.reshape(5, 160) @ head.fc.weight.T + head.fc.bias
    torch.testing.assert_close(head(latents), wanted.float(), rtol=1e-6, atol=1e-6)


def test_logits_are_float32_whatever_the_head_computes_in() -> None:
    head = ClassIdHead(64, 3).bfloat16()
    assert head(torch.randn(2, 64, dtype=torch.bfloat16)).dtype == torch.float32


def test_it_can_learn_the_order_along_a_line() -> None:
    """Points at whole multiples of one direction: the ClassIds that Eq. 7 asks for between two ends."""
    torch.manual_seed(0)
    ends, places = torch.randn(2, 64), torch.arange(40) % 4
    points = torch.lerp(ends[:1], ends[1:], places[:, None] / 3) + 0.05 * torch.randn(40, 64)
    head = ClassIdHead(64, 4)
    adam = torch.optim.Adam(head.parameters(), lr=0.02)
    for _ in range(100):
        adam.zero_grad()
        F.cross_entropy(head(points), places).backward()
        adam.step()
    assert torch.equal(head(points).argmax(-1), places)
