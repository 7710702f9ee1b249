"""Networks of an architecture outside netspace, with layers and buffers of their own: every file written is read back."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors import safe_open
from safetensors.torch import load_file

from netspace import Space, archs
from netspace.errors import NetspaceError
from netspace.networks.state_dict import metadata_spec

Cli = Callable[..., Any]


@pytest.fixture(params=["timmlike", "postact", "mobile_like"])
def arch(request: pytest.FixtureRequest) -> str:
    return f"networks_that_go_wrong:{request.param}"


@pytest.fixture
def run(cli: Cli, zoo_settings: dict[str, Any], space_settings: dict[str, Any], arch: str) -> Path:
    """A space of networks of `arch`; its zoo is zoo.h5."""
    members = {"members": {"train": 6, "val": 1, "test": 1}, "epochs": {"first": 1, "last": 2}}
    Path("zoo.yaml").write_text(yaml.safe_dump({**zoo_settings, **members, "archs": {"net": {"arch": arch}}}))
    steps = {"networks": 2, "steps": 4, "validate_every": 2}
    Path("space.yaml").write_text(yaml.safe_dump({**space_settings, **steps}))
    for words in (
        ("zoo", "build", "zoo.yaml", "-o", "zoo.h5", "--workers", 1, "--trust-arch", arch),
        ("train", "space.yaml", "--zoo", "zoo.h5", "-o", "run", "--trust-arch", arch),
    ):
        assert cli(*words).code == 0
    return Path("run")


def test_what_is_written_of_them_is_read_back(cli: Cli, run: Path, arch: str) -> None:
    trusted = ("--run", run, "--trust-arch", arch)
    cli("encode", "best", *trusted, "-o", "z.safetensors")
    cli("decode", "z.safetensors", *trusted, "-o", "decoded.safetensors")
    cli("sample", *trusted, "--count", 1, "--save", "samples")
    cli("interpolate", *trusted, "--from", "net/0000", "--to", "net/0001", "--save", "lines")
    cli("compress", "fit", "best", "--zoo", "zoo.h5", "--trust-arch", arch, "-o", "c", "--set", "stages=[{steps: 2}]")
    cli("compress", "reconstruct", "c/compressed.safetensors", "-o", "back.safetensors")
    files = [Path("decoded.safetensors"), *Path("samples").glob("0*.safetensors"), *Path("lines").glob("*.safetensors")]
    assert len(files) >= 3
    space = Space.load(run)
    for file in [*files[:2], files[-1], Path("back.safetensors")]:
        with safe_open(file, "pt") as opened:
            spec = metadata_spec(opened.metadata())
            assert json.loads(opened.metadata()["input_shape"]) == [1, 8, 8]
        assert spec is not None and spec.arch == arch
        encoded = cli("encode", file, *trusted, "-o", "again.safetensors", "--json")
        assert encoded.code == 0, encoded.err
        taught = cli("optimize", "--from", "best", "--teacher", file, *trusted, "--steps", 1, "-o", f"{file.stem}-opt")
        assert taught.code == 0, taught.err
    skeleton = archs.skeleton(arch, {}, (1, 8, 8))
    skeleton.load_state_dict(load_file("decoded.safetensors"))  # buffers and all
    network = space.decode(load_file("z.safetensors")["latent"])
    images = torch.randn(3, 1, 8, 8)
    with torch.no_grad():
        torch.testing.assert_close(skeleton(images), network(images))
    cli("decode", "z.safetensors", *trusted, "-o", "whole.safetensors", "--batch-norm")
    whole = archs.build(arch)
    whole.load_state_dict(load_file("whole.safetensors"))
    with torch.no_grad():
        torch.testing.assert_close(whole.eval()(images), network(images), rtol=1e-4, atol=1e-5)
    again = [
        cli("encode", file, *trusted, "-o", f"of-{file}").code for file in ("whole.safetensors", "decoded.safetensors")
    ]
    assert again == [0, 0]
    codes = [load_file(f"of-{file}.safetensors")["latent"] for file in ("whole", "decoded")]
    torch.testing.assert_close(codes[0], codes[1], rtol=1e-3, atol=1e-3)
    words = ("back.safetensors", "--zoo", "zoo.h5", "--trust-arch", arch)
    measured = cli("compress", "eval", "c/compressed.safetensors", *words, "--json").json
    assert measured["agreement"] == 1.0
    corrected = cli("compress", "correct", "c/compressed.safetensors", *words, "-o", "cc.safetensors")
    assert corrected.code == 0 or "nothing to correct" in corrected.err


@pytest.mark.parametrize("arch", [f"networks_that_go_wrong:{name}" for name in ("timmlike", "postact")])
def test_a_space_takes_no_parameters_without_their_statistics(run: Path, arch: str) -> None:
    space, module = Space.load(run), archs.build(arch)
    alone = {name: value.detach() for name, value in module.named_parameters()}
    with pytest.raises(NetspaceError, match=r"lacks the statistics of its batch norm \(.*running_mean.*folded=True"):
        space.encode(alone)
    assert space.encode(alone, folded=True).shape == (64,)
    folded = space.encode(archs.skeleton(arch, {}, (1, 8, 8)))
    assert folded.shape == space.encode(module.eval()).shape == (64,)
    assert torch.equal(space.encode(module), space.encode(module.state_dict()))
