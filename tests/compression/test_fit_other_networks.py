"""Transformers and networks of other libraries through fit, reconstruct and back into their modules."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from netspace.compression.fit import fit, reconstruct
from netspace.training.recipe import FitConfig


class Vision(nn.Module):
    """A small vision transformer: patches, a token and positions of its own, blocks, a head."""

    def __init__(self) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, 12, 4, stride=4)
        self.cls_token = nn.Parameter(torch.randn(1, 1, 12))
        self.pos_embed = nn.Parameter(torch.randn(1, 5, 12))
        self.block = nn.TransformerEncoderLayer(12, 2, 20, dropout=0.0, batch_first=True)
        self.head = nn.Linear(12, 7)

    def forward(self, images: Tensor) -> Tensor:
        seen = self.patches(images).flatten(2).transpose(1, 2)
        tokens = torch.cat([self.cls_token.expand(len(seen), -1, -1), seen], dim=1) + self.pos_embed
        return torch.as_tensor(self.head(self.block(tokens)[:, 0]))


def there_and_back(module: nn.Module, images: Tensor, layers: list[str]) -> tuple[dict[str, Any], list[str]]:
    """Figures of a fit of a few steps, and the names of tensors that came back changed."""
    state = {name: value.clone() for name, value in module.state_dict().items()}
    torch.save(state, "net.pth")
    settings = {"layers": layers, "predictor": {"hidden": 16}, "stages": [{"steps": 3, "kernels": 64}], "order": "none"}
    result = fit("net.pth", Path("c"), FitConfig.model_validate(settings))
    reconstruct(Path("c/compressed.safetensors"), Path("back.safetensors"))
    back = load_file("back.safetensors")
    module.load_state_dict(back)
    with torch.no_grad():
        assert module.eval()(images).isfinite().all()
    return result, [name for name in state if not torch.equal(back[name], state[name])]


@pytest.mark.parametrize(
    ("layers", "changed"),
    [
        ([], ["patches.weight"]),
        (
            ["*attn.*weight", "block.linear?.weight"],
            [f"block.{name}.weight" for name in ("self_attn.out_proj", "linear1", "linear2")],
        ),
    ],
)
def test_a_transformer_by_patterns_and_its_tokens_stay(layers: list[str], changed: list[str]) -> None:
    torch.manual_seed(0)
    module = Vision()
    if layers:
        changed = ["block.self_attn.in_proj_weight", *changed]
    result, actual = there_and_back(module, torch.rand(2, 3, 8, 8), layers)
    assert actual == changed
    assert result.parameters_represented == sum(module.state_dict()[name].numel() for name in changed)


def test_networks_of_timm() -> None:
    timm = pytest.importorskip("timm")
    torch.manual_seed(0)
    for name, settings, layers in (
        (
            "vit_tiny_patch16_224",
            {"depth": 1, "embed_dim": 24, "img_size": 32},
            ["blocks.*.attn.*.weight", "*.mlp.*.weight"],
        ),
        ("convnext_atto", {"depths": (1, 1, 1, 1), "dims": (4, 8, 12, 16)}, []),
    ):
        module = timm.create_model(name, num_classes=5, **settings)
        expected = [
            key
            for key, value in module.state_dict().items()
            if (value.dim() == 4 if not layers else value.dim() == 2 and ("attn" in key or "mlp" in key))
        ]
        _, actual = there_and_back(module, torch.rand(2, 3, 32, 32), layers)
        assert actual == expected
        Path("c").rename(name)
