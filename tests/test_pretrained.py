"""Spaces in folders with a model card, on the hub, and the one that comes with netspace."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
import torch
from huggingface_hub import ModelCard
from huggingface_hub.errors import RepositoryNotFoundError
from safetensors.torch import load_file

import netspace
from netspace import pretrained
from netspace.commands.evaluate import evaluate
from netspace.errors import NetspaceError, UsageError
from netspace.networks.prep import unflatten
from netspace.space import Space
from netspace.zoo import Zoo


@pytest.fixture(scope="module")
def space(tiny_run: Path) -> Space:
    return Space.load(tiny_run)


@pytest.fixture
def stored(space: Space, tmp_path: Path) -> Path:
    space.save_pretrained(tmp_path / "stored")
    return tmp_path / "stored"


def test_a_folder_gives_the_space_back(space: Space, stored: Path) -> None:
    assert {path.name for path in stored.iterdir()} == {"config.json", "model.safetensors", "README.md"}
    again = Space.from_pretrained(stored)
    latents = torch.randn(3, space.latent, generator=torch.Generator().manual_seed(0))
    assert torch.equal(again.decode_flat(latents), space.decode_flat(latents))
    preps = space.decode_all(latents).preps
    assert torch.equal(again.encode(preps), space.encode(preps))
    assert again.recipe == space.recipe and again.family.to_json() == space.family.to_json()
    again.save_pretrained(stored)  # over what is there
    for other in (Space.load(stored), netspace.load_space(stored)):
        assert torch.equal(other.decode_flat(latents), space.decode_flat(latents))


def test_several_architectures(multi_run: Path, tmp_path: Path) -> None:
    space = Space.load(multi_run)
    space.save_pretrained(tmp_path / "stored")
    again, latents = Space.from_pretrained(tmp_path / "stored"), torch.randn(4, space.latent)
    assert torch.equal(again.decode_all(latents).preps, space.decode_all(latents).preps)
    card = (tmp_path / "stored" / "README.md").read_text()
    assert all(f"| {each.id} |" in card for each in space.family) and "It was not evaluated" in card


def test_the_card_says_what_eval_measured(run_copy: Path, tmp_path: Path) -> None:
    measured = evaluate(run_copy, "test")
    Space.load(run_copy).save_pretrained(tmp_path / "one")
    again = Space.from_pretrained(tmp_path / "one")
    again.save_pretrained(tmp_path / "two")
    for name in ("one", "two"):
        card = ModelCard.load(tmp_path / name / "README.md")
        assert card.data.library_name == "netspace" and "weight-space" in (card.data.tags or [])
        (row,) = [line for line in card.text.splitlines() if line.startswith("| this space")]
        assert f"| {measured.agreement:.1%} |" in row and f"| {measured.r2:.3f} |" in row
        assert "6 test networks that training never saw" in card.text
        assert str(run_copy) not in (tmp_path / name / "config.json").read_text()
    assert again.evaluation is not None and again.evaluation.agreement == measured.agreement


def test_weights_that_16_bits_represent_take_16_bits(run_copy: Path, tmp_path: Path) -> None:
    space = Space.load(run_copy)
    for value in space.model.parameters():
        value.copy_(value.half().float())
    space.save_pretrained(tmp_path / "half")
    weights = load_file(tmp_path / "half" / "model.safetensors")
    assert all(weights[name].dtype == torch.float16 for name, _ in space.model.named_parameters())
    again = Space.from_pretrained(tmp_path / "half")
    for name, value in space.model.state_dict().items():
        assert (
            torch.equal(again.model.state_dict()[name], value) and again.model.state_dict()[name].dtype == value.dtype
        )


@pytest.mark.parametrize(
    ("damage", "problem"),
    [
        (lambda folder: (folder / "model.safetensors").write_bytes(b"no"), "model.safetensors"),
        (lambda folder: (folder / "config.json").write_text("{"), "config.json"),
        (lambda folder: _change(folder, netspace_space=2), "is of version 2 of its format; this netspace reads 1"),
        (lambda folder: _change(folder, settings={"latent": "x"}), "config.json"),
        (lambda folder: _change(folder, archs={}), "does not say which networks its space holds"),
        (lambda folder: _change(folder, evaluation={"members": "x"}), "has an evaluation that is none"),
        (lambda folder: (folder / "config.json").unlink(), "is not a run folder"),
    ],
)
def test_a_damaged_folder_is_refused(stored: Path, damage: Any, problem: str) -> None:
    damage(stored)
    with pytest.raises(NetspaceError, match=problem):
        Space.from_pretrained(stored)


def _change(folder: Path, **values: Any) -> None:
    record = json.loads((folder / "config.json").read_text())
    record = {name: value for name, value in record.items() if not name.startswith("netspace_hash")}
    record.pop("netspace_sealed", None)
    (folder / "config.json").write_text(json.dumps({**record, **values}))


def test_an_architecture_of_others_is_not_imported(stored: Path) -> None:
    record = json.loads((stored / "config.json").read_text())
    record["archs"]["lenetlike"]["spec"]["arch"] = "os:getcwd"
    _change(stored, archs=record["archs"])
    with pytest.raises(UsageError, match="trust it with --trust-arch os:getcwd"):
        Space.from_pretrained(stored)


def test_nothing_else_is_overwritten(space: Space, run_copy: Path, tmp_path: Path) -> None:
    before = sorted(path.name for path in run_copy.iterdir())
    with pytest.raises(UsageError, match="holds something else than a stored space: choose another folder"):
        space.save_pretrained(run_copy)
    assert sorted(path.name for path in run_copy.iterdir()) == before
    (tmp_path / "file").write_text("x")
    with pytest.raises(UsageError, match="was to be a folder for the space, but it is a file"):
        space.save_pretrained(tmp_path / "file")


def test_the_hub_is_asked_for_two_files(stored: Path, space: Space, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[str, str]] = []

    def download(repo_id: str, filename: str, **options: Any) -> str:
        asked.append((repo_id, filename))
        return str(stored / filename)

    monkeypatch.setattr(pretrained, "hf_hub_download", download)
    monkeypatch.setattr("huggingface_hub.hub_mixin.hf_hub_download", download)
    again = netspace.load_space("someone/space")
    assert again.recipe == space.recipe
    assert set(asked) == {("someone/space", "config.json"), ("someone/space", "model.safetensors")}


def test_a_space_is_pushed_to_the_hub(space: Space, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Created:
        repo_id = "someone/space"

    def upload(self: Any, *, folder_path: Path, repo_id: str, **options: Any) -> str:
        shutil.copytree(folder_path, tmp_path / "pushed")
        return f"https://hub/{repo_id}"

    monkeypatch.setattr(huggingface_hub.HfApi, "create_repo", lambda self, **options: Created)
    monkeypatch.setattr(huggingface_hub.HfApi, "upload_folder", upload)
    assert space.push_to_hub("someone/space") == "https://hub/someone/space"
    assert Space.from_pretrained(tmp_path / "pushed").recipe == space.recipe


def test_what_is_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(*_: Any, **__: Any) -> str:
        raise OSError("not found")

    monkeypatch.setattr(pretrained, "hf_hub_download", missing)
    monkeypatch.setattr("huggingface_hub.hub_mixin.hf_hub_download", missing)
    with pytest.raises(NetspaceError, match=r"no space could be read from 'no/such' \(not found\): give a folder"):
        netspace.load_space("no/such")
    with pytest.raises(UsageError, match=r"unknown space 'digts': did you mean 'digits'\?"):
        netspace.load_space("digts")
    assert RepositoryNotFoundError.__mro__  # the hub's own errors are among those that are caught
    assert issubclass(RepositoryNotFoundError, huggingface_hub.errors.HfHubHTTPError)


def test_the_space_that_comes_with_netspace() -> None:
    assert pretrained.bundled_spaces() == ["digits"]
    folder = pretrained.BUNDLED / "digits"
    assert sum(path.stat().st_size for path in folder.iterdir()) < 1_000_000
    space = netspace.load_space("digits")
    assert space.evaluation is not None and (space.evaluation.members or 0) >= 50
    assert f"| {space.evaluation.agreement:.1%} |" in (folder / "README.md").read_text()
    assert "/tmp" not in (folder / "README.md").read_text() + (folder / "config.json").read_text()
    network = space.decode(torch.zeros(space.latent))
    assert network(torch.zeros(1, 1, 8, 8)).shape == (1, 10)


def test_outputs_are_those_of_the_modules_and_have_gradients(multi_run: Path) -> None:
    space = Space.load(multi_run)
    latents = torch.randn(5, space.latent, generator=torch.Generator().manual_seed(1))
    inputs = torch.randn(4, *space.family.input_shape)
    outputs = space.functional(latents, inputs)
    with torch.no_grad():
        expected = torch.stack([module(inputs) for module in space.decode(latents)])
    torch.testing.assert_close(outputs, expected, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(space.functional(latents[3], inputs), expected[3], rtol=1e-4, atol=1e-4)
    own = torch.randn(5, 4, *space.family.input_shape)
    separate = torch.stack([space.functional(z, x) for z, x in zip(latents, own, strict=True)])
    torch.testing.assert_close(space.functional(latents, own, shared=False), separate, rtol=1e-4, atol=1e-4)

    arch, step = space.family[1].id, 1e-3
    start = latents[:1].double().float().requires_grad_()
    (gradient,) = torch.autograd.grad(space.functional(start, inputs, arch).square().sum(), start)
    direction = gradient / gradient.norm()
    with torch.no_grad():
        ends = [space.functional(start + sign * step * direction, inputs, arch).square().sum() for sign in (1, -1)]
    assert float((ends[0] - ends[1]) / (2 * step)) == pytest.approx(float(gradient.norm()), rel=0.05)


def test_batches_lists_and_files_of_latents(space: Space, tmp_path: Path) -> None:
    from netspace.commands.convert import write_latent

    latents = torch.randn(3, space.latent, generator=torch.Generator().manual_seed(2))
    write_latent(tmp_path / "z.safetensors", latents[1])
    flat = space.decode_flat(latents)

    def same(module: Any, row: int) -> bool:
        expected = unflatten(flat[row], space.spec)
        return all(torch.allclose(value, expected[name], atol=1e-6) for name, value in module.named_parameters())

    batch = space.decode(latents)
    assert len(batch) == 3 and all(same(module, row) for row, module in enumerate(batch))
    mixed = space.decode([latents[2], tmp_path / "z.safetensors"])
    assert same(mixed[0], 2) and same(mixed[1], 1) and same(space.decode(str(tmp_path / "z.safetensors")), 1)
    assert space.decode([]) == []
    torch.save({"latent": torch.zeros(3)}, tmp_path / "short.pt")
    with pytest.raises(NetspaceError, match="was expected to hold a latent of 64 numbers"):
        space.decode(tmp_path / "short.pt")


def test_a_space_says_what_it_is_and_moves(space: Space, tiny_zoo: Path) -> None:
    assert repr(space).startswith("Space(lenetlike (1,477 parameters) <-> 64 numbers; encoder probe, decoder conv, ")
    assert repr(space).endswith(f"weights on cpu, of {str(space.run)!r})")
    assert space.to("cpu") is space
    with Zoo(tiny_zoo) as zoo:
        expected = space.encode(zoo[0])
        moved = Space.load(space.run or "").to(torch.device("cpu"))
        assert torch.equal(moved.encode(zoo[0]), expected)
