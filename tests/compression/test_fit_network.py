"""A network held in a predictor: fitted, measured, written and given back; stopped fits go on; mistakes are told."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from fits import MEMBER, distilling, fitting, settings, state_of
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import nn

from netspace import precision
from netspace.compression import fit as compress
from netspace.compression.analyse import importance
from netspace.compression.fit import begin, evaluate, fit, reconstruct
from netspace.config import resumed
from netspace.errors import NetspaceError, UsageError
from netspace.io import read_json, without_seal, write_tensors
from netspace.models.compressed import Compressed
from netspace.native.orders import arrange
from netspace.networks.state_dict import read_safetensors
from netspace.run_folder import Provenance
from netspace.training import loop
from netspace.training.fit import Fit, NernStep, Original
from netspace.training.recipe import FitConfig
from netspace.zoo import Zoo


def test_a_member_is_fitted_measured_and_given_back(multi_zoo: Path, tmp_path: Path) -> None:
    figures = fit(MEMBER, tmp_path / "c", settings(), multi_zoo)
    file = tmp_path / "c" / "compressed.safetensors"
    errors = [record.relative_error for record in figures.curve]
    assert errors[-1] < 0.97 * errors[0] and [record.step for record in figures.curve] == [0, 10, 20, 30]
    assert figures.parameters_original > figures.parameters_represented > 0
    assert figures.bytes_file == file.stat().st_size
    with Zoo(multi_zoo) as zoo:
        assert figures.accuracy_original == pytest.approx(zoo.group("resnet").members["accuracy_test"][0])
    reconstruct(file, tmp_path / "net.safetensors")
    given, stored = load_file(tmp_path / "net.safetensors"), Compressed.load(file).reconstruct()
    assert all(torch.equal(given[name], stored[name]) for name in stored)
    origin = read_json(tmp_path / "c" / "provenance.json", Provenance)
    assert (origin.kind, origin.model, origin.zoo, origin.arch) == ("fit", MEMBER, str(multi_zoo), None)
    with Zoo(multi_zoo) as zoo:
        assert origin.zoo_hash == zoo.content_hash
    again = evaluate(file, str(tmp_path / "net.safetensors"), multi_zoo)
    assert again.relative_error == 0 and again.agreement == 1.0
    assert again.accuracy_original == figures.accuracy_reconstructed


def test_what_is_not_represented_is_kept_bit_by_bit(tmp_path: Path) -> None:
    save_file(state_of(), tmp_path / "any.safetensors")
    figures = fit(str(tmp_path / "any.safetensors"), tmp_path / "c", settings())
    assert figures.accuracy_original is None and figures.relative_error > 0
    given = Compressed.load(tmp_path / "c" / "compressed.safetensors").reconstruct()
    assert set(given) == set(state_of())
    for name, value in state_of().items():
        same = torch.equal(given[name], value)
        assert same is (name not in ("0.weight", "2.weight")), name


@pytest.mark.parametrize("order", ["none", "in-filter", "cross-filter"])
@pytest.mark.parametrize("norms", [True, False])
@pytest.mark.parametrize("layers", [(), ("*.weight",)])
def test_a_predictor_that_says_the_targets_gives_the_network_back(
    tmp_path: Path, order: str, norms: bool, layers: tuple[str, ...]
) -> None:
    state = state_of()
    compressed = begin(state, settings(order=order, norms=norms, layers=layers), None)
    given = compressed.weights(compressed.targets(state))
    for name, value in given.items():
        torch.testing.assert_close(value, state[name])
    compressed.save(tmp_path / "c.safetensors")
    loaded = Compressed.load(tmp_path / "c.safetensors")
    assert all(torch.equal(a, b) for a, b in zip(loaded.orders, compressed.orders, strict=True))
    assert all(torch.equal(loaded.reconstruct()[name], value) for name, value in compressed.reconstruct().items())


@pytest.mark.parametrize("norms", [True, False])
def test_tiled_pointwise_convolutions_survive_the_file(tmp_path: Path, norms: bool) -> None:
    torch.manual_seed(0)
    state = {"point.weight": torch.randn(7, 10, 1, 1), "deep.weight": torch.randn(4, 1, 3, 3)}
    compressed = begin(state, settings(pointwise="tiles", norms=norms), None)
    for name, value in compressed.weights(compressed.targets(state)).items():
        torch.testing.assert_close(value, state[name])
    compressed.save(tmp_path / "c.safetensors")
    loaded = Compressed.load(tmp_path / "c.safetensors")
    assert loaded.kernels == compressed.kernels and loaded.kernels.layers[0].tiled
    assert all(torch.equal(loaded.reconstruct()[name], value) for name, value in compressed.reconstruct().items())


def test_what_is_larger_than_the_side_is_left_out(tmp_path: Path) -> None:
    state = {"point.weight": torch.randn(7, 10, 1, 1), "deep.weight": torch.randn(4, 1, 3, 3)}
    compressed = begin(state, settings(pointwise="tiles", side=2, layers=("*weight",)), None)
    assert list(compressed.rest) == ["deep.weight"] and compressed.kernels.side == 2 and len(compressed.places) == 4 * 5
    torch.testing.assert_close(compressed.weights(compressed.targets(state))["point.weight"], state["point.weight"])
    compressed.save(tmp_path / "c.safetensors")
    assert Compressed.load(tmp_path / "c.safetensors").kernels == compressed.kernels
    assert begin(state, settings(pointwise="tiles", side=2), None).kernels == compressed.kernels
    with pytest.raises(NetspaceError, match=r"all of deep.weight have kernels larger than 2 x 2: choose a larger side"):
        begin(state, settings(pointwise="tiles", side=2, layers=("deep*",)), None)


def test_a_transformer_s_matrices_are_fitted_by_patterns(tmp_path: Path) -> None:
    torch.manual_seed(0)
    state = nn.TransformerEncoderLayer(12, 2, 20).state_dict()
    torch.save(state, tmp_path / "t.pt")
    config = settings(layers=("*linear*", "*in_proj*"))
    figures = fit(str(tmp_path / "t.pt"), tmp_path / "c", config)
    assert figures.parameters_represented == 2 * 12 * 20 + 36 * 12
    assert figures.curve[-1].relative_error < 0.97 * figures.curve[0].relative_error
    given = Compressed.load(tmp_path / "c" / "compressed.safetensors").reconstruct()
    fitted = {"linear1.weight", "linear2.weight", "self_attn.in_proj_weight"}
    assert list(given) == list(state)
    assert {name for name, value in state.items() if not torch.equal(given[name], value)} == fitted


def test_files_of_version_1_are_read(tmp_path: Path) -> None:
    path = tmp_path / "c.safetensors"
    compressed = begin(state_of(), settings(), None)
    compressed.save(path)
    with safe_open(path, "pt") as file:
        result = json.loads(file.metadata()["netspace_compressed"])
    old = {**result, "version": "1", "layers": [layer[:2] for layer in result["layers"]]}
    write_tensors(path, read_safetensors(path), netspace_compressed=json.dumps(old))
    assert Compressed.load(path).kernels == compressed.kernels
    write_tensors(path, read_safetensors(path), netspace_compressed=json.dumps({**result, "version": "5"}))
    with pytest.raises(NetspaceError, match="of version 5; this reads 1, 2, 3 and 4"):
        Compressed.load(path)


@pytest.mark.parametrize("version", ["1", "2"])
@pytest.mark.parametrize("kind", ["plain", "residual"])
def test_files_written_before_coordinates_were_a_setting_have_normalised_ones(
    kind: str, version: str, tmp_path: Path
) -> None:
    path = tmp_path / "c.safetensors"
    predictor = {"hidden": 24, "kind": kind, "embedding": {"coordinates": "normalised"}}
    compressed = begin(state_of(), settings(predictor=predictor), None)
    compressed.save(path)
    with safe_open(path, "pt") as file:
        metadata = json.loads(file.metadata()["netspace_compressed"])
    assert metadata["version"] == "3" and metadata["predictor"]["embedding"].pop("coordinates") == "normalised"
    write_tensors(path, read_safetensors(path), netspace_compressed=json.dumps({**metadata, "version": version}))
    read, expected = Compressed.load(path), compressed.reconstruct()
    assert read.predictor.config == compressed.predictor.config
    assert all(torch.equal(value, expected[name]) for name, value in read.reconstruct().items())
    read.save(path)  # as a file of today
    assert Compressed.load(path).predictor.config.embedding.coordinates == "normalised"
    raw = begin(state_of(), settings(predictor={**predictor, "embedding": {}}), None)
    raw.predictor.load_state_dict(compressed.predictor.state_dict())
    assert not torch.equal(raw.reconstruct()["0.weight"], expected["0.weight"])


def test_a_folder_begun_before_coordinates_were_a_setting_goes_on_with_normalised_ones(
    multi_zoo: Path, tmp_path: Path
) -> None:
    config = settings(predictor={"hidden": 24, "embedding": {"coordinates": "normalised"}})
    fit(MEMBER, tmp_path / "c", config, multi_zoo)
    file = tmp_path / "c" / "config.yaml"
    assert file.read_text().count("    coordinates: normalised\n") == 1
    file.write_text(without_seal(file.read_text()).replace("    coordinates: normalised\n", ""))
    fit(MEMBER, tmp_path / "c", config, multi_zoo, resume=True)
    assert resumed(FitConfig, file, ()).model_dump() == config.model_dump()  # as `--resume` alone takes them
    with pytest.raises(UsageError, match=r"embedding\.coordinates was 'normalised' and is 'raw' now"):
        fit(MEMBER, tmp_path / "c", settings(), multi_zoo, resume=True)


def test_a_fit_with_a_teacher_wants_the_same_one_again(multi_zoo: Path, tmp_path: Path) -> None:
    stage = {"steps": 2, "distillation": 1.0, "images": 8, "kernels": 64, "teacher": "best"}
    fit(MEMBER, tmp_path / "out", settings(stages=[stage]), multi_zoo)
    result = read_json((tmp_path / "out" / "network.json"), dict[str, Any])
    assert len(result["hash"].split()) == 2
    (tmp_path / "out" / "network.json").write_text(json.dumps({"hash": result["hash"][:-1]}))
    with pytest.raises(UsageError, match="another network or teacher"):
        fit(MEMBER, tmp_path / "out", settings(stages=[stage]), multi_zoo, resume=True)
    with pytest.raises(NetspaceError, match="unknown architecture 'nobody'"):
        fit(MEMBER, tmp_path / "no", settings(stages=[{**stage, "teacher": "nobody/0001"}]), multi_zoo)
    save_file(state_of(), tmp_path / "any.safetensors")
    plain = settings(stages=[{"steps": 2, "teacher": "best"}])
    with pytest.raises(UsageError, match="give --zoo"):
        fit(str(tmp_path / "any.safetensors"), tmp_path / "no", plain)
    assert not (tmp_path / "no").exists()


def test_rounds_fit_anew_what_the_round_before_gave(tmp_path: Path) -> None:
    def run(rounds: int) -> tuple[Fit, list[dict[str, Any]]]:
        torch.manual_seed(0)
        config = settings(stages=[{"steps": 10, "rounds": rounds, "kernels": 64}])
        work = fitting(config, begin(state_of(), config, None), Original(state_of()))
        (tmp_path / str(rounds)).mkdir()
        return work, work.run(tmp_path / str(rounds))

    (one, _), (two, curve) = run(1), run(2)
    assert torch.equal(two.step.target, one.step.all())
    assert not torch.equal(two.step.all(), one.step.all())  # another predictor, which nears it
    assert [(record["stage"], record["step"]) for record in curve] == [(0, 0), (0, 10), (1, 0), (1, 10)]
    begun, ended = (record["relative_error"] for record in curve[2:])
    assert begun > 0.9 and ended < begun


def test_a_stopped_fit_goes_on_to_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save_file(state_of(), tmp_path / "any.safetensors")
    stages = [{"steps": 12, "kernels": 16}, {"steps": 12, "rounds": 2, "kernels": 16}]
    config = settings(stages=stages, validate_every=5)
    monkeypatch.setattr(loop, "CHECKPOINT_EVERY", -1.0)
    whole = fit(str(tmp_path / "any.safetensors"), tmp_path / "whole", config)
    for stop in (7, 17, 30):
        taken = 0
        chosen = NernStep.chosen

        def dying(self: NernStep, *told: Any, limit: int = stop, chosen: Any = chosen) -> Any:
            nonlocal taken
            taken += 1
            if taken > limit:
                raise KeyboardInterrupt
            return chosen(self, *told)

        with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
            patch.setattr(NernStep, "chosen", dying)
            fit(str(tmp_path / "any.safetensors"), tmp_path / f"{stop}", config)
        actual = fit(str(tmp_path / "any.safetensors"), tmp_path / f"{stop}", config, resume=True)
        assert actual.curve == whole.curve
        files = [load_file(tmp_path / name / "compressed.safetensors") for name in ("whole", str(stop))]
        assert all(torch.equal(files[0][name], files[1][name]) for name in files[0])


def test_orders_are_found_once_and_kept_beside_the_fit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    state, kept = state_of(), tmp_path / "orders.safetensors"
    first = begin(state, settings(order="cross-filter"), None, kept)
    looked = []
    monkeypatch.setattr(compress, "arrange", lambda *told: looked.append(told) or arrange(*told))
    again = begin(state, settings(order="cross-filter"), None, kept)
    assert not looked and all(torch.equal(a, b) for a, b in zip(first.orders, again.orders, strict=True))
    begin(state, settings(order="in-filter"), None, kept)  # of another kind
    begin({name: 2 + value for name, value in state.items()}, settings(order="in-filter"), None, kept)  # other kernels
    assert len(looked) == 2
    kept.write_bytes(b"damaged")
    begin(state, settings(order="cross-filter"), None, kept)
    assert len(looked) == 3 and begin(state, settings(order="cross-filter"), None, kept) and len(looked) == 3


def test_of_equally_accurate_predictors_the_nearer_is_kept(multi_zoo: Path) -> None:
    step = distilling(multi_zoo, stages=[{"steps": 1}])
    work = fitting(step.config, step.compressed, step.original)
    work.step.run = lambda state, shown, features: (torch.zeros(len(shown), 10), [])  # type: ignore[method-assign]
    first = work.validate()
    with torch.no_grad():
        work.model.linears[-1].weight.zero_()
        work.model.linears[-1].bias.zero_()
    second = work.validate()  # all zeros have a relative error of 1, below that of random weights
    assert first.figures["accuracy_val"] == second.figures["accuracy_val"] and first.score < second.score
    assert first.score == (first.figures["accuracy_val"], -first.figures["relative_error"])


def test_filters_are_ranked_by_their_error(multi_zoo: Path, tmp_path: Path) -> None:
    fit(MEMBER, tmp_path / "c", settings(), multi_zoo)
    result = importance(tmp_path / "c" / "compressed.safetensors", MEMBER, multi_zoo, top=0)
    errors = [each.relative_error for each in result.filters]
    assert errors == sorted(errors) and len(errors) == result.count


def test_mistakes_are_told_and_nothing_is_overwritten(multi_zoo: Path, tmp_path: Path) -> None:
    save_file(state_of(), tmp_path / "any.safetensors")
    distil = settings(stages=[{"steps": 1, "distillation": 1.0}])
    with pytest.raises(
        UsageError, match=r"distillation runs the network, and of .*any\.safetensors only the weights are known"
    ):
        fit(str(tmp_path / "any.safetensors"), tmp_path / "c", distil)
    with pytest.raises(UsageError, match="names a zoo's member, but no zoo is at hand"):
        fit(MEMBER, tmp_path / "c", settings())
    assert not (tmp_path / "c").exists()
    save_file({"fc.bias": torch.ones(3)}, tmp_path / "none.safetensors")
    with pytest.raises(NetspaceError, match="nothing to represent"):
        fit(str(tmp_path / "none.safetensors"), tmp_path / "d", settings())
    fit(MEMBER, tmp_path / "c", settings(), multi_zoo)
    file = tmp_path / "c" / "compressed.safetensors"
    before = file.read_bytes()
    with pytest.raises(UsageError, match="exists already: give --resume"):
        fit(MEMBER, tmp_path / "c", settings(), multi_zoo)
    with pytest.raises(UsageError, match="begun with other settings: seed was 0 and is 1 now"):
        fit(MEMBER, tmp_path / "c", settings(seed=1), multi_zoo, resume=True)
    with pytest.raises(UsageError, match="begun with another network"):
        fit("resnet/0001", tmp_path / "c", settings(), multi_zoo, resume=True)
    with pytest.raises(NetspaceError, match="holds another network than lenet/0000"):
        evaluate(file, "lenet/0000", multi_zoo)
    assert file.read_bytes() == before
    with pytest.raises(NetspaceError, match=r"any\.safetensors was expected to be a compressed network"):
        Compressed.load(tmp_path / "any.safetensors")
    result = read_json((tmp_path / "c" / "fit.json"), dict[str, Any])
    assert result["file"] == str(file) and result["seconds"] > 0


def test_a_fit_goes_on_in_the_precision_that_it_began_with(
    multi_zoo: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The choice is written down at the beginning: a resumed fit times nothing anew, wherever it goes on."""
    monkeypatch.setattr(precision, "bf16_is_fast", lambda _device: False)
    adam = {"name": "adam", "learning_rate": 2e-3}  # Muon has a precision of its own
    stages = [{"steps": 4, "kernels": 64, "optimizer": adam}]
    config = settings(precision="auto", predictor_precision="auto", stages=stages)
    first = fit(MEMBER, tmp_path / "fit", config, multi_zoo)
    record = read_json(tmp_path / "fit" / "precision.json", dict[str, str])
    assert record == first.precision == {"precision": "float32", "predictor_precision": "float32"}
    monkeypatch.setattr(precision, "bf16_is_fast", lambda _device: pytest.fail("timed anew"))
    again = fit(MEMBER, tmp_path / "fit", config, multi_zoo, resume=True)
    assert again.precision == record and again.relative_error == first.relative_error
