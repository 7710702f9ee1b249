"""A zoo as a sequence of networks: members, selections, tables, data sets."""

from __future__ import annotations

import copy
import pickle
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader
from zoo_files import LARGE, population, zoo_at

from netspace import archs
from netspace.errors import NetspaceError, UsageError
from netspace.networks.batch import NetBatch
from netspace.networks.prep import unpack
from netspace.space import Space
from netspace.zoo import MEMBER, Zoo


@pytest.fixture
def two(tmp_path: Path) -> Iterator[Zoo]:
    """A zoo of two architectures of other sizes, 6 and 4 members."""
    with Zoo(zoo_at(tmp_path / "z.h5", tiny=population(), large=population(LARGE, 4, 1, (4, 32)))) as zoo:
        yield zoo


@pytest.fixture
def networks(multi_zoo: Path) -> Iterator[Zoo]:
    with Zoo(multi_zoo) as zoo:
        yield zoo


def test_a_zoo_is_a_sequence_of_members(two: Zoo) -> None:
    names = [*(f"tiny/{row:04d}" for row in range(6)), *(f"large/{row:04d}" for row in range(4))]
    assert [str(member) for member in two] == two.members.names == names
    assert len(two) == len(two.members) == 10 and two["large/0002"].ref == two[8].ref == two[-2].ref
    assert [str(each) for each in two[4:7]] == names[4:7]
    assert [str(each) for each in two[np.array([9, 0])]] == [names[9], names[0]]
    with pytest.raises(IndexError):
        two[10]
    with pytest.raises(UsageError, match=r"unknown architecture 'larg': did you mean 'large'\?"):
        two["larg/0002"]
    with pytest.raises(UsageError, match="member 'large/0004' does not exist: large has members 0000 to 0003"):
        two["large/0004"]
    with pytest.raises(UsageError, match=r"large/0002 is a member of .*, but not of this selection of 6"):
        two.filter(arch="tiny")["large/0002"]


def test_a_member_has_the_columns_of_its_row(two: Zoo) -> None:
    member, stored = two["large/0001"], population(LARGE, 4, 1, (4, 32))
    row = stored.members[1]
    assert member.row == {
        name: row[name].item().decode() if row[name].dtype.kind == "S" else row[name].item()
        for name in MEMBER.names or ()
    }
    assert (member.accuracy, member.seed, member.split) == (row["accuracy_test"], 1001, "train")
    assert torch.equal(member.prep(), torch.from_numpy(stored.preps[1]))
    assert repr(member) == (
        f"Member('large/0001', large, 80 parameters, split 'train', score {100 * row['accuracy_test']:.1f} %)"
    )
    with pytest.raises(AttributeError, match="a member has no column or attribute 'sed'; its columns are seed, run"):
        member.sed  # noqa: B018
    assert copy.copy(member).ref == member.ref


@pytest.mark.parametrize("arch", ["lenet", "resnet"])
@pytest.mark.parametrize("batch_norm", [False, True])
def test_modules_compute_what_the_zoo_stores(networks: Zoo, arch: str, batch_norm: bool) -> None:
    member = networks[f"{arch}/0002"]
    images = torch.randn(5, *member.spec.input_shape)
    nets = NetBatch(archs.skeleton(member.spec.arch, member.spec.settings, member.spec.input_shape), member.spec)
    expected = nets(unpack(member.prep(), member.spec.num_parameters)[None], images)[0]
    module = member.module(batch_norm=batch_norm)
    assert not module.training
    scale = float(expected.abs().max())
    with torch.no_grad():
        torch.testing.assert_close(module(images), expected, rtol=0, atol=1e-5 * scale)
        own = archs.build(member.spec.arch, **member.spec.settings) if batch_norm else module  # the user's class
        own.load_state_dict(member.state_dict(batch_norm=batch_norm))
        torch.testing.assert_close(own.eval()(images), expected, rtol=0, atol=1e-5 * scale)
    assert any("running_mean" in name for name in member.state_dict(batch_norm=True)) == (arch == "resnet")


def test_state_dicts_are_copies(networks: Zoo) -> None:
    member = networks[0]
    state = member.state_dict()
    next(iter(state.values())).zero_()
    assert not torch.equal(next(iter(state.values())), next(iter(member.state_dict().values())))


def test_a_diverged_member_has_no_weights(tmp_path: Path) -> None:
    broken = population()
    broken.members["status"][1], broken.members["split"][1], broken.preps[1] = b"diverged", b"", 0
    with Zoo(zoo_at(tmp_path / "z.h5", tiny=broken)) as zoo:
        with pytest.raises(NetspaceError, match="tiny/0001 diverged in training: the zoo keeps its row"):
            zoo[1].state_dict()
        assert [str(each) for each in zoo.filter(where="status != 'ok'")] == ["tiny/0001"]


def test_an_architecture_that_makes_other_parameters_is_refused(tmp_path: Path) -> None:
    from dataclasses import replace

    from netspace.networks.spec import NetSpec

    settings = {"channels": 1, "image_size": 8, "width": 0.25}
    spec = NetSpec.from_module(archs.skeleton("lenetlike", settings, (1, 8, 8)), "lenetlike", settings, (1, 8, 8))
    spec = replace(spec, names=("first", *spec.names[1:]))
    with Zoo(zoo_at(tmp_path / "z.h5", net=population(spec, size=(12, 128)))) as zoo:
        with pytest.raises(NetspaceError, match="makes other networks than the one that is stored"):
            zoo[0].module()


def test_latents_are_those_of_the_space(tiny_zoo: Path, tiny_run: Path) -> None:
    space = Space.load(tiny_run)
    with Zoo(tiny_zoo) as zoo:
        member = zoo[3]
        assert torch.equal(member.latent(space), space.encode(member.prep()))


def test_selections_are_what_a_loop_selects(two: Zoo) -> None:
    everything = list(two)

    def names(condition: object) -> list[str]:
        return [str(each) for each in everything if condition(each)]  # type: ignore[operator]

    assert two.split("train").names == names(lambda m: m.split == "train")
    assert two.filter(arch="large", split="test").names == names(lambda m: m.arch == "large" and m.split == "test")
    assert two.filter(where="accuracy > 0.4 and parameters < 50").names == names(
        lambda m: m.accuracy_test > 0.4 and m.spec.num_parameters < 50
    )
    assert two.filter(where=lambda m: m.epochs > 5).names == two.filter(where="epochs > 5").names != []
    assert two.filter(where="member in ('large/0003', 'tiny/0001') and arch != 'tiny'").names == ["large/0003"]
    ordered = two.split("train").sort("accuracy", descending=True)
    assert [m.accuracy for m in ordered] == sorted((m.accuracy for m in two.split("train")), reverse=True)
    assert two.sort("split").sort("arch").names[:4] == [f"large/{row:04d}" for row in (3, 0, 1, 2)]
    assert "6 of" in repr(two.filter(arch="tiny")) and len(two.filter(where="accuracy > 2")) == 0
    with pytest.raises(UsageError, match="unknown column 'acuracy': did you mean 'accuracy'"):
        two.sort("acuracy")
    with pytest.raises(UsageError, match="unknown split 'tran': did you mean 'train'"):
        two.split("tran")


def test_what_is_not_known_comes_last(tmp_path: Path) -> None:
    held = population()
    held.members["accuracy_test"] = [0.2, np.nan, 0.9, 0.2, np.nan, 0.1]
    with Zoo(zoo_at(tmp_path / "z.h5", tiny=held)) as zoo:
        assert zoo.sort("accuracy").rows.tolist() == [5, 0, 3, 2, 1, 4]
        assert zoo.sort("accuracy", descending=True).rows.tolist() == [2, 0, 3, 5, 1, 4]
        assert "score not known" in repr(zoo[1])


def test_an_empty_zoo(tmp_path: Path) -> None:
    with Zoo(zoo_at(tmp_path / "z.h5", tiny=population(count=0))) as zoo:
        assert list(zoo) == [] and zoo.filter(where="accuracy > 0").names == [] and len(zoo.sort("split")) == 0
        assert len(zoo.dataset()) == 0 and zoo.members.read().shape == (0, 0, 0)


def test_the_table_as_a_data_frame(two: Zoo, monkeypatch: pytest.MonkeyPatch) -> None:
    frame = two.to_pandas()
    assert list(frame.index) == two.members.names and list(frame.columns) == list(two.members.columns[1:])
    assert frame.loc["large/0002", "accuracy_val"] == two["large/0002"].accuracy_val
    assert frame.groupby("split").size().to_dict() == {"train": 6, "val": 2, "test": 2}
    monkeypatch.setitem(sys.modules, "pandas", None)
    with pytest.raises(NetspaceError, match=r'pandas is not installed: `pip install "netspace\[pandas\]"`'):
        two.to_pandas()


def test_a_data_set_gives_preps_and_targets(two: Zoo) -> None:
    members = two.filter(arch="tiny").sort("accuracy")
    data = members.dataset(target="accuracy")
    expected = two.group("tiny").read(members.rows)
    assert len(data) == 6 and torch.equal(members.read(), expected)
    prep, target = data[2]
    assert torch.equal(prep, expected[2]) and target == members[2].accuracy
    assert torch.equal(torch.stack(members.dataset().__getitems__([4, 4, 1])), expected[[4, 4, 1]])
    with pytest.raises(IndexError):
        data[6]
    with pytest.raises(
        UsageError, match=r"members' differ \(tiny 4 x 24, large 4 x 32\): choose with filter\(arch=...\)"
    ):
        two.dataset()
    with pytest.raises(UsageError, match="a column of numbers, but 'split' holds texts"):
        members.dataset(target="split")
    data.close()
    assert torch.equal(data[0][0], expected[0])


def test_workers_of_a_loader_open_the_zoo_themselves(tiny_zoo: Path) -> None:
    with Zoo(tiny_zoo) as zoo:
        data = zoo.split("test").dataset(target="accuracy")
        expected = zoo.split("test").read()
        assert torch.equal(data[0][0], expected[0])  # opened in this process, too
    assert torch.equal(pickle.loads(pickle.dumps(data))[1][0], expected[1])  # as a worker that is spawned gets it
    loader = DataLoader(data, batch_size=4, num_workers=1, multiprocessing_context="fork")
    preps, accuracies = zip(*loader, strict=True)
    assert torch.equal(torch.cat(preps), expected) and torch.cat(accuracies).shape == (6,)


def test_a_zoo_that_was_replaced_is_noticed(tmp_path: Path) -> None:
    path = zoo_at(tmp_path / "z.h5")
    with Zoo(path) as zoo:
        data = zoo.dataset()
    zoo_at(path, tiny=population(seed=5))
    with pytest.raises(NetspaceError, match="was replaced while its PReps were read: make the data set again"):
        data[0]


def test_zoos_and_selections_can_be_sent_to_processes(two: Zoo) -> None:
    chosen = pickle.loads(pickle.dumps(two.split("test")))
    assert chosen.names == two.split("test").names
    assert torch.equal(chosen[0].prep(), two.split("test")[0].prep())
    chosen.zoo.close()
