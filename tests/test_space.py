"""`Space`: one network has one latent however it is given, and decodes to a module that anyone can use."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file

import netspace
from netspace import archs
from netspace.errors import NetspaceError, UsageError
from netspace.io import read_json, read_yaml, write_json, write_yaml
from netspace.networks.prep import unflatten, unpack
from netspace.space import Space
from netspace.training.latent_space import train
from netspace.training.recipe import SpaceRecipe
from netspace.training.setup import task_of
from netspace.zoo import Zoo


@pytest.fixture(scope="module")
def space(tiny_run: Path) -> Space:
    return Space.load(tiny_run)


@pytest.fixture(scope="module")
def preps(tiny_zoo: Path) -> torch.Tensor:
    with Zoo(tiny_zoo) as zoo:
        return zoo.only().read([0, 7, 30, 35])


def test_the_package_offers_it(tiny_run: Path) -> None:
    loaded = netspace.Space.load(str(tiny_run))
    assert (loaded.latent, loaded.multi, loaded.family.size, loaded.run) == (64, False, (12, 128), tiny_run)
    assert loaded.arch_class().id == loaded.arch_class("lenetlike").id == "lenetlike" and len(loaded.family) == 1
    assert loaded.spec.num_parameters == 1477 and loaded.device == torch.device("cpu")
    assert not loaded.model.training and not any(value.requires_grad for value in loaded.model.parameters())


def test_a_module_its_state_dict_and_its_prep_are_one_network(space: Space, preps: torch.Tensor) -> None:
    for prep in preps:
        state = {name: value.clone() for name, value in unflatten(unpack(prep, 1477), space.spec).items()}
        module = archs.build("lenetlike", **space.spec.settings)
        module.load_state_dict(state)
        latent = space.encode(prep)
        assert latent.shape == (64,) and latent.dtype == torch.float32
        assert torch.equal(space.encode(module), latent)
        assert torch.equal(space.encode(state), latent)
        backwards = dict(reversed(list(module.double().state_dict().items())))
        assert torch.equal(space.encode(backwards), latent)  # names count, not their order; and any float type
    many = space.encode_preps(preps)
    assert torch.allclose(many, torch.stack([space.encode(prep) for prep in preps]), rtol=1e-5, atol=1e-6)
    assert len(many.unique(dim=0)) == len(preps)


def test_several_networks_in_any_form_are_encoded_at_once(
    space: Space, preps: torch.Tensor, tiny_zoo: Path, tmp_path: Path
) -> None:
    states = [unflatten(unpack(prep, 1477), space.spec) for prep in preps]
    module = archs.build("lenetlike", **space.spec.settings)
    module.load_state_dict(states[1])
    save_file({name: value.contiguous() for name, value in states[2].items()}, tmp_path / "net.safetensors")
    expected = torch.stack([space.encode(prep) for prep in preps])

    def close(actual: torch.Tensor) -> bool:
        return actual.shape == expected.shape and torch.allclose(actual, expected, rtol=1e-5, atol=1e-6)

    with Zoo(tiny_zoo) as zoo:
        mixed = [states[0], module, str(tmp_path / "net.safetensors"), zoo[35]]
        assert close(space.encode(mixed)) and close(space.encode(iter(mixed))) and close(space.encode(preps))
        assert close(space.encode(zoo[np.array([0, 7, 30, 35])]))
    assert torch.allclose(space.encode(tmp_path / "net.safetensors"), expected[2], rtol=1e-5, atol=1e-6)
    assert space.encode([]).shape == (0, 64)
    with pytest.raises(UsageError, match=r"PReps of \(12, 136\) were given; lenetlike has \(12, 128\)"):
        space.encode([preps[0], torch.zeros(12, 136)])


def test_a_member_of_another_architecture(space: Space, multi_zoo: Path, multi_run: Path) -> None:
    with Zoo(multi_zoo) as zoo:
        with pytest.raises(
            UsageError,
            match=r"resnet/0000 \(resnet8\) is of another architecture than this space's.*'width': 0.2.*'width': 0.25",
        ):
            zoo["resnet/0000"].latent(space)
        several = Space.load(multi_run)
        members = [zoo["resnet/0000"], zoo["lenet/0001"], zoo["resnet/0002"]]
        for latent, member in zip(several.encode(members), members, strict=True):
            expected = several.encode(member.prep(), member.arch)
            torch.testing.assert_close(latent, expected, rtol=1e-5, atol=1e-6)


def test_permuted_neurons_are_the_same_network_to_the_probe_encoder(space: Space, preps: torch.Tensor) -> None:
    state = {name: value.clone() for name, value in unflatten(unpack(preps[3], 1477), space.spec).items()}
    before = space.encode(state)
    order = torch.randperm(len(state["fc1.bias"]), generator=torch.Generator().manual_seed(0))
    assert not torch.equal(order, torch.arange(len(order)))
    state["fc1.weight"], state["fc1.bias"] = state["fc1.weight"][order], state["fc1.bias"][order]
    state["fc2.weight"] = state["fc2.weight"][:, order]
    torch.testing.assert_close(space.encode(state), before, rtol=1e-4, atol=1e-5)


def test_flat_networks_are_decoded_in_the_precision_of_all_others(
    space: Space, preps: torch.Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    latents = space.encode_preps(preps)
    monkeypatch.setattr(space, "precision", "bf16")
    assert torch.equal(space.decode_flat(latents), unpack(space.decode_all(latents).preps, 1477))


def test_a_decoded_module_computes_what_the_batch_computes(space: Space, preps: torch.Tensor, tiny_zoo: Path) -> None:
    with Zoo(tiny_zoo) as zoo:
        task = task_of(zoo, "cpu")
    images = task.normalise(task.test.images)
    latents = space.encode_preps(preps)
    flat = space.decode_flat(latents)
    assert flat.shape == (4, 1477)
    together = space.family[0].nets(flat, images)
    for index, latent in enumerate(latents):
        network = space.decode(latent)
        assert not network.training
        with torch.no_grad():
            torch.testing.assert_close(network(images), together[index], rtol=1e-4, atol=1e-5)
        plain = archs.build("lenetlike", **space.spec.settings).eval()
        plain.load_state_dict(network.state_dict())
        assert torch.equal(plain(images), network(images))
        for value in network.parameters():  # a network of its own, to be trained on
            assert value.requires_grad and value.is_leaf
    networks = space.decode_all(latents)
    assert torch.equal(unpack(networks.preps, 1477), flat) and networks.class_ids.tolist() == [0] * 4
    assert torch.equal(networks.preps, space.decode_all(latents, "lenetlike").preps)


def test_each_decoded_network_is_its_own(space: Space, preps: torch.Tensor) -> None:
    latent = space.encode(preps[0])
    first, second = space.decode(latent), space.decode(latent)
    with torch.no_grad():
        for value in first.parameters():
            value.zero_()
    assert torch.equal(space.encode(second), space.encode(space.decode(latent)))


def test_numbers_of_any_type_are_latents_networks_and_inputs(space: Space, preps: torch.Tensor) -> None:
    latent, inputs = space.encode(preps[0]), torch.randn(3, 1, 8, 8)
    expected, outputs = space.decode_flat(latent[None]), space.functional(latent, inputs)
    for dtype in (torch.float64, torch.float16, torch.int64):
        other = latent.to(dtype)
        assert torch.equal(space.decode_flat(other[None]), space.decode_flat(other.float()[None]))
        assert space.functional(other, inputs.to(dtype)).dtype == torch.float32
    for same in (latent.double(), latent.numpy(), latent.double().numpy()):
        network = space.decode(same)
        assert torch.equal(torch.cat([value.flatten() for value in network.parameters()]), expected[0])
    assert len(space.decode(np.zeros((3, 64)))) == 3
    assert torch.equal(space.functional(latent.double(), inputs.double()), outputs)
    assert torch.equal(space.encode(preps.double()), space.encode(preps))
    assert space.refine(latent.double(), inputs.double(), outputs.double(), steps=2).dtype == torch.float32


@pytest.mark.filterwarnings("error")
def test_no_networks_give_empty_results(multi_run: Path) -> None:
    space = Space.load(multi_run)
    none, shape = torch.zeros(0, space.latent), space.family.input_shape
    assert space.decode(none) == [] and len(space.decode_all(none)) == 0
    for arch in space.family:
        assert space.decode_flat(none, arch.id).shape == (0, arch.parameters)
        assert space.encode(torch.zeros(0, *arch.size), arch.id).shape == none.shape
    assert space.class_ids(none).shape == (0,)
    assert space.functional(none, torch.zeros(5, *shape)).shape == (0, 5, 10)
    assert space.functional(none, torch.zeros(0, 5, *shape), shared=False).shape == (0, 5, 10)
    assert space.refine(none, torch.zeros(5, *shape), torch.zeros(5, 10), steps=2).shape == none.shape


def test_what_does_not_fit(space: Space) -> None:
    with pytest.raises(UsageError, match=r"^latents of shape \(1, 63\) were given: \(networks, 64\) was expected"):
        space.decode(torch.zeros(63))
    for latents in (torch.zeros(2, 3, 64), torch.tensor(1.0), [torch.zeros(2, 64)]):
        with pytest.raises(UsageError, match=r"were given: \(networks, 64\) was expected"):
            space.decode(latents)
    for work in (space.decode_all, space.decode_flat, space.class_ids):
        with pytest.raises(UsageError, match=r"^latents of shape \(64,\) were given"):
            work(torch.zeros(64))
    with pytest.raises(UsageError, match=r"^latents of shape \(2, 3, 64\) were given"):
        space.functional(torch.zeros(2, 3, 64), torch.zeros(2, 1, 8, 8))
    with pytest.raises(UsageError, match=r"\(12, 136\)"):
        space.encode(torch.zeros(12, 136))
    with pytest.raises(NetspaceError, match="finite"):
        space.encode(torch.full((12, 128), torch.nan))
    with pytest.raises(NetspaceError, match=r"missing|shape"):
        space.encode(archs.build("lenetlike", **{**space.spec.settings, "width": 0.5}))


def test_same_seed_same_space_and_another_seed_another(
    tiny_zoo: Path, tiny_run: Path, space_settings: dict[str, Any], tmp_path: Path
) -> None:
    again = train(SpaceRecipe.model_validate(space_settings), tiny_zoo, tmp_path / "again")
    first, second = (load_file(run / "checkpoints" / "best.safetensors") for run in (tiny_run, again))
    assert all(torch.equal(first[name], second[name]) for name in first)
    other = train(SpaceRecipe.model_validate({**space_settings, "seed": 1}), tiny_zoo, tmp_path / "other")
    third = load_file(other / "checkpoints" / "best.safetensors")
    assert not torch.equal(first["decoder.deepen.weight"], third["decoder.deepen.weight"])


@pytest.mark.parametrize("damage", ["no best", "cut best", "other best", "no space", "bad space", "bad config"])
def test_a_broken_run_is_told(run_copy: Path, damage: str) -> None:
    best = run_copy / "checkpoints" / "best.safetensors"
    if damage == "no best":
        best.unlink()
    elif damage == "cut best":
        best.write_bytes(best.read_bytes()[:1000])
    elif damage == "other best":
        save_file({"x": torch.zeros(2)}, best)
    elif damage == "no space":
        (run_copy / "space.json").unlink()
    elif damage == "bad space":
        (run_copy / "space.json").write_text(json.dumps({"archs": {"lenetlike": {"prep": [12, 128]}}}))
    else:
        (run_copy / "config.yaml").write_text("laten: 64\n")
    with pytest.raises(NetspaceError) as result:
        Space.load(run_copy)
    assert result.value.exit_code == 1 and "\n" not in str(result.value) and str(run_copy) in str(result.value)


def test_a_space_needs_no_zoo(tiny_run: Path, tmp_path: Path, preps: torch.Tensor) -> None:
    alone = tmp_path / "alone"
    for name in ("config.yaml", "provenance.json", "space.json"):
        alone.mkdir(exist_ok=True)
        shutil.copy(tiny_run / name, alone / name)
    (alone / "checkpoints").mkdir()
    shutil.copy(tiny_run / "checkpoints" / "best.safetensors", alone / "checkpoints")
    assert torch.equal(Space.load(alone).encode(preps[0]), Space.load(tiny_run).encode(preps[0]))


def test_gradients_pass_through_flat_parameters_and_not_silently_through_a_module(tiny_run: Path) -> None:
    space = Space.load(tiny_run)
    latent = torch.randn(1, space.latent, dtype=torch.float64).float().requires_grad_()
    with pytest.raises(
        UsageError,
        match=r"^a latent that requires a gradient .* use Space\.functional, or Space\.decode_flat with torch\.func",
    ):
        space.decode(latent[0])
    images = torch.randn(4, 1, 8, 8)
    (gradient,) = torch.autograd.grad(space.arch_class().nets(space.decode_flat(latent), images).square().sum(), latent)

    def loss(value: torch.Tensor) -> float:
        with torch.no_grad():
            return float(space.arch_class().nets(space.decode_flat(value), images).square().sum())

    step = 1e-2 * gradient / gradient.norm()
    actual = (loss(latent.detach() + step) - loss(latent.detach() - step)) / (2 * step.norm())
    assert actual == pytest.approx(float(gradient.norm()), rel=0.05)
    assert not space.decode_flat(latent.detach()).requires_grad
    with torch.no_grad():
        assert not space.decode_flat(latent).requires_grad and space.decode(latent[0]) is not None


@pytest.mark.skipif(sys.platform != "linux", reason="the peak of the memory is read from /proc")
@pytest.mark.parametrize(
    ("file", "change"),
    [
        ("config.yaml", {"latent": 4 * 10**8}),
        ("config.yaml", {"latent": 4 * 10**8, "decoder": {"kind": "linear"}}),
        ("config.yaml", {"latent": (4 * 10**15) ** 2}),
        ("config.yaml", {"encoder": {"kind": "probe", "hidden": 10**9}}),
        ("config.yaml", {"encoder": {"kind": "probe", "probes": 10**9}}),
        ("config.yaml", {"encoder": {"kind": "conv"}, "latent": 4 * 10**8}),
        ("config.yaml", {"multi": {"rows": 4 * 10**8}}),
        ("space.json", {"prep": [10**6, 10**4]}),
        ("space.json", {"width": 1e5}),
        ("space.json", {"width": 1e200}),
        ("space.json", {"channels": 10**9}),
        ("space.json", {"classes": 10**9}),
    ],
)
def test_sizes_that_only_the_settings_claim_are_refused_before_memory_is_taken(
    run_copy: Path, file: str, change: dict[str, Any]
) -> None:
    path = run_copy / file
    if file == "config.yaml":
        write_yaml(path, yaml.safe_dump({**read_yaml(path), **change}))  # by who knows how to write the hash
    else:
        record = read_json(path, dict[str, Any])
        arch = record["archs"]["lenetlike"]
        arch["prep"] = change.get("prep", arch["prep"])
        spec = arch["spec"]
        spec["kwargs"] = [[name, change.get(name, value)] for name, value in spec["kwargs"]]
        spec["input_shape"][0] = change.get("channels", spec["input_shape"][0])
        write_json(path, record)
    Path("/proc/self/clear_refs").write_text("5")  # the peak of this process from now on
    with pytest.raises(
        NetspaceError,
        match=r"(config.yaml|space.json|settings).*: (they claim tensors of more than [\d,]+ bytes|.*argument)",
    ) as caught:
        Space.load(run_copy)
    assert "\n" not in str(caught.value)
    status = Path("/proc/self/status").read_text()
    peak, now = (int(status.partition(f"{name}:")[2].split()[0]) for name in ("VmHWM", "VmRSS"))
    assert peak - now < 400_000, "kB"


def test_descent_brings_latents_to_what_networks_answer(space: Space, preps: torch.Tensor) -> None:
    starts, inputs, others = space.encode(preps[:3]), torch.randn(200, 1, 8, 8), torch.randn(100, 1, 8, 8)
    networks = space.networks(preps[:3])

    def answers(of: torch.Tensor) -> torch.Tensor:
        return networks.each(lambda nets, flat: nets(flat, of))

    def error(latents: torch.Tensor) -> float:
        return float((space.functional(latents, others) - answers(others)).square().mean())

    for loss in ("values", "classes"):
        assert error(space.refine(starts, inputs, answers(inputs), steps=100, loss=loss)) < 0.8 * error(starts)
    refined = space.refine(starts, inputs, answers(inputs), steps=50)
    assert refined.shape == starts.shape and not refined.requires_grad
    assert torch.equal(refined, space.refine(starts, inputs, answers(inputs), steps=50))
    one = space.refine(starts[0], inputs, answers(inputs)[0], steps=5, loss=torch.nn.functional.l1_loss)
    assert one.shape == (space.latent,) and not torch.equal(one, starts[0])


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_latents_are_refined_where_the_caller_needs_no_gradients(
    multi_run: Path, mode: Callable[[], AbstractContextManager[None]]
) -> None:
    space, found = Space.load(multi_run), []
    for context in (mode, nullcontext, mode):
        with context():
            latents = torch.randn(5, space.latent, generator=torch.Generator().manual_seed(0))
            inputs = torch.randn(20, *space.family.input_shape, generator=torch.Generator().manual_seed(1))
            found.append(space.refine(latents, inputs, torch.ones(20, 10), steps=3))
    assert torch.equal(found[0], found[1]) and torch.equal(found[1], found[2])
    assert not torch.equal(found[0], latents) and not found[0].requires_grad


def test_what_latents_cannot_be_refined_by(space: Space, preps: torch.Tensor) -> None:
    start, inputs = space.encode(preps[0]), torch.zeros(4, 1, 8, 8)
    for outputs in (torch.zeros(5, 10), torch.zeros(2, 4, 10), torch.zeros(4)):
        with pytest.raises(
            UsageError, match=r"for 4 inputs and 1 latents: they were expected to be \(inputs, outputs\)"
        ):
            space.refine(start, inputs, outputs)
    with pytest.raises(UsageError, match="but no inputs were given: give 1 or more"):
        space.refine(start, inputs[:0], torch.zeros(0, 10))
    for loss in ("values", "classes"):
        with pytest.raises(UsageError, match="outputs of 3 numbers were given, but these networks give 10 for each"):
            space.refine(start, inputs, torch.zeros(4, 3), loss=loss)
    bad = torch.full((4, 1, 8, 8), torch.nan)
    with pytest.raises(UsageError, match=r"^inputs were given that are not all finite"):
        space.refine(start, bad, torch.zeros(4, 10))
    with pytest.raises(UsageError, match=r"^outputs were given that are not all finite"):
        space.refine(start, inputs, torch.full((4, 10), torch.inf))
    with pytest.raises(UsageError, match="the latents have numbers that are not finite: begin"):
        space.refine(start * torch.nan, inputs, torch.zeros(4, 10))
    with pytest.raises(UsageError, match="numbers are all equal"):
        space.refine(torch.zeros(space.latent), inputs, torch.zeros(4, 10))
    with pytest.raises(UsageError, match="networks of one output tell no classes apart"):
        space.refine(start, inputs, torch.zeros(4, 1), loss="classes")
    with pytest.raises(UsageError, match="loss 'kl'"):
        space.refine(start, inputs, torch.zeros(4, 10), loss="kl")
    with pytest.raises(UsageError, match="steps"):
        space.refine(start, inputs, torch.zeros(4, 10), steps=0)
