"""`compress fit` with a size: what is tried, what is taken, what is kept, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from budgets import NET_ARCH, net, net_file, settings
from PIL import Image

from netspace.compression import search, ways
from netspace.compression.budget import fit_budget
from netspace.compression.fit import evaluate, reconstruct
from netspace.compression.judging import merit
from netspace.compression.originals import find_original
from netspace.errors import NetspaceError, UsageError
from netspace.models.coded_predictor import load_any
from netspace.results.budget import BudgetFit, Tried

MEMBER = "best:resnet"
SIZE = 2600  # bytes


@pytest.fixture(scope="module")
def fitted(multi_zoo: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, BudgetFit]:
    """A search on digits, which no test writes into."""
    out = tmp_path_factory.mktemp("budget") / "small"
    return out, fit_budget(MEMBER, out, settings(SIZE, curve=(0.8,)), multi_zoo)


def test_all_ways_are_in_the_table(fitted: tuple[Path, BudgetFit]) -> None:
    out, result = fitted
    assert {row.way for row in result.table} == {"rounded", "coded", "pruned", "coordinate", "mixed"}
    assert all(row.bytes is None or row.bytes <= SIZE for row in result.table)
    assert result.bytes_file == (out / "compressed.safetensors").stat().st_size <= SIZE
    (chosen,) = (row for row in result.table if row.chosen)
    assert (chosen.way, chosen.bytes, chosen.accuracy) == (result.way, result.bytes_file, result.accuracy_reconstructed)
    possible = [row for row in result.table if row.bytes is not None]
    assert chosen.accuracy_val == max(row.accuracy_val for row in possible if row.accuracy_val is not None)
    assert result.why.startswith(result.way) and " is best by accuracy on validation images: " in result.why
    small = [row for row in result.sizes if row.bytes is not None and row.bytes <= 0.8 * SIZE]
    assert {row.way for row in small} <= set(ways.UNTRAINED) and small and not any(row.steps for row in small)
    assert {row.steps for row in result.sizes if row.way == "coded"} | {chosen.steps} >= {0, 2}  # tried short, too
    assert json.loads((out / "fit.json").read_text())["table"] == result.payload()["table"]


def test_the_figures_are_those_of_the_file(fitted: tuple[Path, BudgetFit], multi_zoo: Path, tmp_path: Path) -> None:
    out, result = fitted
    again = evaluate(out / "compressed.safetensors", MEMBER, multi_zoo)
    assert again.accuracy_reconstructed == result.accuracy_reconstructed
    assert again.agreement == result.agreement and again.accuracy_original == result.accuracy_original
    assert again.relative_error == pytest.approx(result.relative_error, rel=1e-5)
    reconstruct(out / "compressed.safetensors", tmp_path / "net.safetensors")
    state, _ = find_original(str(tmp_path / "net.safetensors"), None)
    assert state.module is not None  # the file says of which architecture it is


def test_a_stopped_search_goes_on(
    fitted: tuple[Path, BudgetFit], multi_zoo: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[str] = []

    def counted(name: str, make: Any, stop: bool) -> Any:
        def run(*arguments: Any) -> Any:
            if arguments[1]:  # a limit of 0 asks for the fewest bytes
                calls.append(name)
                if stop:
                    raise KeyboardInterrupt
            return make(*arguments)

        return run

    whole = dict(ways.UNTRAINED)
    config = settings(SIZE, curve=(0.8,))
    monkeypatch.setattr(search, "UNTRAINED", {k: counted(k, make, k == "pruned") for k, make in whole.items()})
    with pytest.raises(KeyboardInterrupt):
        fit_budget(MEMBER, tmp_path / "c", config, multi_zoo)
    assert calls == ["rounded", "coded", "pruned"]
    with pytest.raises(UsageError, match=r"give --resume to go on with it"):
        fit_budget(MEMBER, tmp_path / "c", config, multi_zoo)
    calls.clear()
    monkeypatch.setattr(search, "UNTRAINED", {k: counted(k, make, False) for k, make in whole.items()})
    result = fit_budget(MEMBER, tmp_path / "c", config, multi_zoo, resume=True)
    assert calls == ["pruned", "mixed", *whole]  # and all of them at the other size
    assert result.table == fitted[1].table and result.seconds is None
    files = [each / "compressed.safetensors" for each in (fitted[0], tmp_path / "c")]
    assert files[0].read_bytes() == files[1].read_bytes()


def test_the_smallest_size_that_keeps_the_accuracy(multi_zoo: Path, tmp_path: Path) -> None:
    config = settings(None, budget={"accuracy_drop": 2.0}, way="coded", steps=0, short_steps=0)
    result = fit_budget(MEMBER, tmp_path / "c", config, multi_zoo)
    (row,) = result.table
    assert result.accuracy_original_val is not None and row.accuracy_val is not None
    assert row.accuracy_val >= result.accuracy_original_val - 0.02 - 1e-9
    trials = [Tried.read(file) for file in (tmp_path / "c" / "candidates").glob("*.json")]
    lost = [
        each for each in trials if each.budget is not None and result.bytes_budget and each.budget < result.bytes_budget
    ]
    assert len(lost) >= 2
    assert all(each.val.accuracy is None or each.val.accuracy < result.accuracy_original_val - 0.02 for each in lost)
    assert max(each.budget or 0 for each in lost) * search.CLOSE >= (result.bytes_budget or 0)


def test_without_data_the_weights_decide(tmp_path: Path) -> None:
    result = fit_budget(net_file(tmp_path), tmp_path / "c", settings(4_000))
    assert result.inputs == "weights" and result.accuracy_reconstructed is None and result.agreement is None
    own = [row.relative_error for row in result.table if row.relative_error is not None]
    assert result.relative_error == min(own) < 0.3
    assert "by relative error of the weights" in result.why


def test_noise_and_pictures_decide_by_answers(tmp_path: Path) -> None:
    model = net_file(tmp_path)
    config = settings(2_500, input_shape=(3, 8, 8), way="mixed")
    noisy = fit_budget(model, tmp_path / "noise", config, arch=NET_ARCH)
    assert noisy.inputs == "noise" and noisy.accuracy_original is None and 0.5 < (noisy.agreement or 0) <= 1
    folder = tmp_path / "pictures"
    folder.mkdir()
    random = torch.Generator().manual_seed(0)
    for index in range(12):
        pixels = torch.randint(256, (9, 9, 3), generator=random, dtype=torch.uint8).numpy()
        Image.fromarray(pixels).save(folder / f"{index}.png")
    config = settings(2_500, pictures=str(folder), picture_size=8, way="coded")
    shown = fit_budget(model, tmp_path / "shown", config, arch=NET_ARCH)
    assert shown.inputs == "pictures" and shown.agreement in {each / 3 for each in range(4)}  # a quarter is reported on
    config = settings(2_500, pictures=str(folder), input_shape=(3, 8, 8))
    with pytest.raises(UsageError, match=r"--images and --input-shape both say"):
        fit_budget(model, tmp_path / "d", config, arch=NET_ARCH)
    for file in list(folder.iterdir())[3:]:
        file.unlink()
    with pytest.raises(UsageError, match=r"has 3 pictures, .* give 4 or more"):
        fit_budget(model, tmp_path / "d", settings(2_500, pictures=str(folder), picture_size=8), arch=NET_ARCH)
    assert not (tmp_path / "d").exists()


def test_a_network_that_fits_is_copied(tmp_path: Path) -> None:
    result = fit_budget(net_file(tmp_path), tmp_path / "c", settings(20_000))
    assert (result.way, result.relative_error) == ("lossless", 0.0)
    assert result.why.startswith("the network fits as it is: every weight is kept")
    state = load_any(tmp_path / "c" / "compressed.safetensors").reconstruct()
    assert all(torch.equal(value, state[name]) for name, value in net().state_dict().items())
    assert evaluate(tmp_path / "c" / "compressed.safetensors", str(tmp_path / "net.safetensors")).relative_error == 0


@pytest.mark.parametrize("size", [2_500, 200_000])
def test_a_network_of_matrices_with_a_mask_of_four_axes(size: int, tmp_path: Path) -> None:
    torch.manual_seed(0)
    shapes = {"attn.c_attn.weight": (32, 96), "mlp.weight": (64, 32), "wte.weight": (30, 32)}
    state = {name: torch.randn(shape) for name, shape in shapes.items()} | {
        "attn.bias": torch.ones(1, 1, 16, 16).tril()
    }
    torch.save(state, tmp_path / "gpt.pt")
    result = fit_budget(str(tmp_path / "gpt.pt"), tmp_path / "c", settings(size))
    assert (tmp_path / "c" / "fit.json").is_file() and not (tmp_path / "c" / "kernels.json").exists()
    assert {row.way for row in result.table if row.bytes is None} <= {"rounded", "pruned"}
    assert size > 3_000 or "coordinate" in {row.way for row in result.table}


def test_mistakes(multi_zoo: Path, tmp_path: Path) -> None:
    model, out = net_file(tmp_path), tmp_path / "c"
    with pytest.raises(UsageError, match=r"no way holds .* in 100 bytes: the smallest file has [\d,]+ bytes") as caught:
        fit_budget(model, out, settings(100))
    least = int(str(caught.value).partition("smallest file has ")[2].partition(" bytes")[0].replace(",", ""))
    with pytest.raises(UsageError, match=r"no way \(rounded\) holds"):
        fit_budget(model, out, settings(least, way="rounded"))
    with pytest.raises(UsageError, match=r"--accuracy-drop is about labelled images"):
        fit_budget(model, out, settings(None, budget={"accuracy_drop": 1}))
    with pytest.raises(UsageError, match=r"--input-shape is about running the network, .* give --arch"):
        fit_budget(model, out, settings(3_000, input_shape=(3, 8, 8)))
    with pytest.raises(UsageError, match=r"coordinate is trained for a size: give --bytes"):
        fit_budget(MEMBER, out, settings(None, budget={"accuracy_drop": 1}, way="coordinate"), multi_zoo)
    with pytest.raises(UsageError, match=r"the task of best:resnet is known, whose images decide"):
        fit_budget(MEMBER, out, settings(pictures=str(tmp_path)), multi_zoo)
    assert not out.exists()
    assert (fit_budget(model, out, settings(least)).bytes_file or 0) <= least
    with pytest.raises(UsageError, match=r"was begun with another network"):
        torch.save({name: 2 * value for name, value in net().state_dict().items()}, tmp_path / "other.pt")
        fit_budget(str(tmp_path / "other.pt"), out, settings(least), resume=True)


def test_a_drop_that_no_way_keeps(multi_zoo: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(search, "UNTRAINED", {"rounded": ways.UNTRAINED["rounded"]})
    monkeypatch.setattr(ways, "BITS", range(2, 3))
    config = settings(None, budget={"accuracy_drop": 0.0})
    with pytest.raises(NetspaceError, match=r"no way keeps the accuracy of best:resnet within 0 points: the best has"):
        fit_budget(MEMBER, tmp_path / "c", config, multi_zoo)


def test_merit_prefers_accuracy_then_answers_then_small_differences() -> None:
    from netspace.results.budget import Measured

    best = Measured(accuracy=0.9, agreement=0.8, divergence=3.0)
    assert merit(best) > merit(Measured(accuracy=0.8, agreement=0.9, divergence=1.0))
    assert merit(best) > merit(Measured(accuracy=0.9, agreement=0.7, divergence=1.0))
    assert merit(best) > merit(Measured(accuracy=0.9, agreement=0.8, divergence=4.0))
    assert merit(Measured(relative_error=0.1)) > merit(Measured(relative_error=0.2))
    assert merit(Measured(relative_error=0.2)) > merit(Measured(relative_error=float("nan")))
