"""Folding: exact for every kind of layer, the same for one member and for many, and loud about the rest."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import pytest
import torch
import torchvision
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.utils.fusion import fuse_conv_bn_eval, fuse_linear_bn_eval
from torch.nn.utils.parametrizations import weight_norm

from netspace.networks.folding import Folder, FrozenAffine, fold

CONVS = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}
TRANSPOSED = {1: nn.ConvTranspose1d, 2: nn.ConvTranspose2d, 3: nn.ConvTranspose3d}
NORMS: dict[int, type[_BatchNorm]] = {1: nn.BatchNorm1d, 2: nn.BatchNorm2d, 3: nn.BatchNorm3d}


T = TypeVar("T", bound=nn.Module)


def trained(module: T, seed: int = 0) -> T:
    """`module` with batch norms as training might leave them: signs, scales and means of all kinds."""
    generator = torch.Generator().manual_seed(seed)
    for each in module.modules():
        if isinstance(each, _BatchNorm):
            assert each.running_mean is not None and each.running_var is not None
            each.running_mean.normal_(generator=generator)
            each.running_var.uniform_(0.2, 3.0, generator=generator)
            if each.affine:
                nn.init.normal_(each.weight, generator=generator)
                nn.init.normal_(each.bias, generator=generator)
    return module


def assert_same(module: nn.Module, folded: nn.Module, x: Tensor) -> None:
    """An oracle of its own: both in float32 on x, as a user would run them."""
    with torch.no_grad():
        expected, found = module.eval()(x), folded(x)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4 * float(expected.abs().max()))


def assert_parameters_only(folded: nn.Module) -> None:
    assert not any(isinstance(each, _BatchNorm) for each in folded.modules())
    assert list(folded.state_dict()) == [key for key, _ in folded.named_parameters()]
    assert not any(each.training for each in folded.modules())


@settings(max_examples=60, deadline=None)
@given(
    dims=st.sampled_from([1, 2, 3]),
    transposed=st.booleans(),
    groups=st.sampled_from([1, 2, 3]),
    per_group=st.tuples(st.integers(1, 3), st.integers(1, 3)),
    kernel=st.integers(1, 3),
    stride=st.integers(1, 2),
    padding=st.integers(0, 1),
    dilation=st.integers(1, 2),
    bias=st.booleans(),
    affine=st.booleans(),
)
def test_every_convolution_absorbs_exactly(
    dims: int,
    transposed: bool,
    groups: int,
    per_group: tuple[int, int],
    kernel: int,
    stride: int,
    padding: int,
    dilation: int,
    bias: bool,
    affine: bool,
) -> None:
    before, after = groups * per_group[0], groups * per_group[1]
    settings_ = {"stride": stride, "padding": padding, "dilation": dilation, "groups": groups, "bias": bias}
    conv = (TRANSPOSED if transposed else CONVS)[dims](before, after, kernel, **settings_)  # type: ignore[arg-type]
    net = trained(nn.Sequential(conv, NORMS[dims](after, affine=affine, eps=1e-3), nn.LeakyReLU()))
    x = torch.randn(2, before, *(6,) * dims)
    folded = fold(net, x)
    assert_same(net, folded, x)
    assert_parameters_only(folded)
    assert [key for key, _ in folded.named_parameters()] == ["0.weight", "0.bias"]


@pytest.mark.parametrize(("transposed", "groups"), [(False, 1), (False, 4), (True, 1)])
def test_agrees_with_the_library_where_the_library_is_right(transposed: bool, groups: int) -> None:
    """All but grouped transposed convolutions, which torch's own does not fold."""
    kind = nn.ConvTranspose2d if transposed else nn.Conv2d
    net = trained(nn.Sequential(kind(4, 8, 3, groups=groups), nn.BatchNorm2d(8)).double()).eval()
    conv, norm = net
    expected = fuse_conv_bn_eval(conv, norm, transpose=transposed)  # type: ignore[type-var, arg-type]
    found = fold(net, torch.zeros(1, 4, 5, 5, dtype=torch.float64))[0]  # type: ignore[index]
    torch.testing.assert_close(dict(found.named_parameters()), dict(expected.named_parameters()))


def test_linear_agrees_with_the_library() -> None:
    net = trained(nn.Sequential(nn.Linear(5, 7, bias=False), nn.BatchNorm1d(7)).double()).eval()
    expected = fuse_linear_bn_eval(*net)
    found = fold(net, torch.zeros(2, 5, dtype=torch.float64))[0]  # type: ignore[index]
    torch.testing.assert_close(dict(found.named_parameters()), dict(expected.named_parameters()))


def test_a_linear_layer_whose_outputs_are_not_the_channels_keeps_an_affine() -> None:
    net = trained(nn.Sequential(nn.Linear(5, 4), nn.BatchNorm1d(4)))  # (B, 4, 4): channels are the middle axis
    x = torch.randn(2, 4, 5)
    folded = fold(net, x)
    assert_same(net, folded, x)
    assert isinstance(folded[1], FrozenAffine)  # type: ignore[index]


class Twice(nn.Module):
    """One convolution before two batch norms: neither may go into it."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.bn1, self.bn2 = nn.Conv2d(3, 3, 3, padding=1), nn.BatchNorm2d(3), nn.BatchNorm2d(3)

    def forward(self, x: Tensor) -> Tensor:
        return self.bn2(self.conv(self.bn1(self.conv(x)).relu()))


class Branch(Twice):
    """The convolution's output is used past the batch norm too."""

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv(x)
        return self.bn1(y) + self.bn2(y) + y


class Activated(Twice):
    """Batch norm after an activation, a sum and a concatenation; one batch norm called twice."""

    def __init__(self) -> None:
        super().__init__()
        self.bn3 = nn.BatchNorm2d(6)

    def forward(self, x: Tensor) -> Tensor:
        y = self.bn1(torch.relu(self.conv(x)))
        return self.bn3(torch.cat([self.bn2(x + y), self.bn2(y)], 1))


class Peeking(Twice):
    """The convolution's weight is used by other means too."""

    def forward(self, x: Tensor) -> Tensor:
        y = self.bn1(self.conv(x))
        return self.bn2(nn.functional.conv2d(y, self.conv.weight))


@pytest.mark.parametrize("kind", [Twice, Branch, Activated, Peeking])
def test_a_batch_norm_with_nowhere_to_go_becomes_a_frozen_affine(kind: type[Twice]) -> None:
    net, x = trained(kind()), torch.randn(2, 3, 8, 8)
    folded = fold(net, x)
    assert_same(net, folded, x)
    assert_parameters_only(folded)
    assert isinstance(folded.bn1, FrozenAffine) and isinstance(folded.bn2, FrozenAffine)
    trains = [key for key, _ in net.named_parameters()]
    assert [key for key, _ in folded.named_parameters()] == trains
    torch.testing.assert_close(folded.get_parameter("conv.weight"), net.conv.weight)


def test_batch_norm_without_affine_that_stays_gets_a_weight_and_a_bias() -> None:
    net, x = trained(nn.Sequential(nn.ReLU(), nn.BatchNorm1d(4, affine=False))), torch.randn(3, 4)
    folded = fold(net, x)
    assert_same(net, folded, x)
    assert [key for key, _ in folded.named_parameters()] == ["1.weight", "1.bias"]


def test_a_layer_absorbs_through_dropout_and_two_batch_norms_in_a_row() -> None:
    bns = nn.BatchNorm2d(4), nn.BatchNorm2d(4)
    net = trained(nn.Sequential(nn.Conv2d(3, 4, 3), nn.Dropout2d(0.5), bns[0], nn.Identity(), bns[1]))
    x = torch.randn(2, 3, 6, 6)
    folded = fold(net, x)
    assert_same(net, folded, x)
    assert [key for key, _ in folded.named_parameters()] == ["0.weight", "0.bias"]


def test_computed_weights_and_hooked_layers_absorb_nothing() -> None:
    hooked = nn.Conv2d(3, 3, 1)
    hooked.register_forward_hook(_double_output)
    convs = weight_norm(nn.Conv2d(3, 3, 1)), hooked
    net = trained(nn.Sequential(convs[0], nn.BatchNorm2d(3), convs[1], nn.BatchNorm2d(3)))
    x = torch.randn(2, 3, 4, 4)
    folded = fold(net, x)
    assert_same(net, folded, x)
    assert isinstance(folded[1], FrozenAffine) and isinstance(folded[3], FrozenAffine)  # type: ignore[index]


def _double_output(module: nn.Module, args: object, out: Tensor) -> Tensor:
    return 2 * out


class Standardised(nn.Conv2d):
    """A convolution with a forward of its own: its weight means something else."""

    def forward(self, x: Tensor) -> Tensor:
        weight = self.weight / self.weight.square().sum((1, 2, 3), keepdim=True)
        return self._conv_forward(x, weight, self.bias)


def test_a_derived_convolution_with_its_own_forward_absorbs_nothing() -> None:
    net, x = trained(nn.Sequential(Standardised(3, 3, 1), nn.BatchNorm2d(3))), torch.randn(2, 3, 4, 4)
    folded = fold(net, x)
    assert_same(net, folded, x)
    assert isinstance(folded[1], FrozenAffine)  # type: ignore[index]


@pytest.mark.parametrize("make", [torchvision.models.resnet18, torchvision.models.mobilenet_v2])
def test_torchvision_networks_fold_whole(make: Callable[..., nn.Module]) -> None:
    torch.manual_seed(0)
    net = trained(make(weights=None, num_classes=7))
    x = torch.randn(2, 3, 32, 32)
    folded = fold(net, x)
    assert_same(net, folded, x)
    assert_parameters_only(folded)
    assert not any(isinstance(each, FrozenAffine) for each in folded.modules())
    left = [key for key, value in folded.named_parameters() if value.ndim > 1]
    assert left == [key for key, value in net.named_parameters() if value.ndim > 1]
    assert type(folded) is type(net)


class Shortcuts(nn.Module):
    """Control flow on the data and no batch norm: copied, not traced."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(3, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(x) if x.sum() > 0 else x


def test_without_batch_norm_a_network_is_copied_in_eval_mode() -> None:
    for net in (Shortcuts(), torchvision.models.squeezenet1_1(weights=None)):
        folded = fold(net, torch.zeros(1))
        assert net.training and not folded.training and folded is not net
        assert_parameters_only(folded)
        torch.testing.assert_close(folded.state_dict(), net.state_dict())


def test_the_network_given_is_left_alone() -> None:
    net, x = trained(nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))), torch.randn(2, 3, 8, 8)
    before = {key: value.clone() for key, value in net.state_dict().items()}
    state = torch.random.get_rng_state()
    folded = fold(net, x)
    assert net.training and torch.equal(state, torch.random.get_rng_state())
    torch.testing.assert_close(net.state_dict(), before, rtol=0, atol=0)
    assert not any(p.data_ptr() == q.data_ptr() for p in folded.parameters() for q in net.parameters())


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
def test_dtypes_are_kept(dtype: torch.dtype) -> None:
    net = trained(nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.BatchNorm2d(4))).to(dtype)
    folded = fold(net, torch.randn(2, 3, 8, 8, dtype=dtype))
    assert {value.dtype for value in folded.parameters()} == {dtype}


def test_frozen_parameters_stay_frozen() -> None:
    net = nn.Sequential(nn.Linear(3, 4).requires_grad_(False), nn.BatchNorm1d(4), nn.Linear(4, 2))
    grads = {key: value.requires_grad for key, value in fold(net, torch.zeros(2, 3)).named_parameters()}
    assert grads == {"0.weight": False, "0.bias": False, "2.weight": True, "2.bias": True}


class Options(nn.Module):
    """More arguments, nested outputs, and integers for inputs."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.fc, self.bn = nn.Embedding(9, 4), nn.Linear(4, 5), nn.BatchNorm1d(5)

    def forward(self, x: Tensor, mask: Tensor | None = None, mode: str = "plain") -> dict[str, object]:
        y = self.fc(self.embed(x))
        if mask is not None or mode != "plain":
            return {}
        return {"logits": self.bn(input=y), "more": [y.argmax(-1) * 0]}


def test_default_arguments_integer_inputs_and_nested_outputs() -> None:
    net, x = trained(Options()), torch.arange(6)
    folded = fold(net, x)
    assert_parameters_only(folded)
    with torch.no_grad():
        torch.testing.assert_close(folded(x)["logits"], net.eval()(x)["logits"])


# Members


def stacked(members: list[nn.Module]) -> dict[str, Tensor]:
    return {key: torch.stack([each.state_dict()[key] for each in members]) for key in members[0].state_dict()}


def everything() -> nn.Module:
    """Each kind of absorption in one network."""
    return nn.Sequential(
        nn.Conv2d(3, 6, 3, groups=3, bias=False),
        nn.BatchNorm2d(6),
        nn.LeakyReLU(),
        nn.BatchNorm2d(6, affine=False),
        nn.ConvTranspose2d(6, 4, 3, groups=2),
        nn.BatchNorm2d(4, affine=False),
        nn.Conv2d(4, 4, 1),
        nn.Flatten(),
        nn.Linear(4 * 8 * 8, 5),
        nn.BatchNorm1d(5),
    )


def test_folder_gives_what_fold_gives_for_each_member() -> None:
    members, x = [trained(everything(), seed) for seed in range(3)], torch.randn(2, 3, 8, 8)
    folder = Folder(everything(), x)
    assert [step.kind for step in folder.plan] == ["conv", "transposed", "linear", "affine"]
    together = folder(stacked(members))
    for index, member in enumerate(members):
        expected = dict(fold(member, x).named_parameters())
        assert list(together) == list(expected) == list(folder.shapes)
        assert all(together[key].shape == (3, *folder.shapes[key]) for key in together)
        torch.testing.assert_close({key: value[index] for key, value in together.items()}, expected)
        torch.testing.assert_close(folder(member.state_dict()), expected)


def test_folder_of_a_network_without_batch_norm_passes_the_state_on() -> None:
    net = Shortcuts()
    state = stacked([net, net])
    torch.testing.assert_close(Folder(net, torch.zeros(1))(state), state)


def test_folder_needs_no_counters() -> None:
    net = trained(everything())
    state = {key: value for key, value in net.state_dict().items() if "num_batches" not in key}
    folder = Folder(net, torch.zeros(2, 3, 8, 8))
    torch.testing.assert_close(folder(state), folder(net.state_dict()), rtol=0, atol=0)


class Decides(nn.Module):
    """Control flow on the data, which `torch.fx` cannot trace, between layers with batch norm."""

    def __init__(self) -> None:
        super().__init__()
        self.fc, self.bn = nn.Linear(3, 3), nn.BatchNorm1d(3)

    def forward(self, x: Tensor) -> Tensor:
        return self.bn(self.fc(x)) if x.sum() > 0 else self.fc(x)


def test_in_parts_that_cannot_be_traced_batch_norms_stay_as_affine_maps() -> None:
    torch.manual_seed(0)
    for net, parts in (
        (nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3), Decides(), nn.Linear(3, 3), nn.BatchNorm1d(3)), {"2.bn"}),
        (Decides(), {"bn"}),
    ):
        trained(net)
        inputs = torch.randn(2, 3)
        folded, folder = fold(net, inputs), Folder(net, inputs)
        assert {name for name, each in folded.named_modules() if isinstance(each, FrozenAffine)} == parts
        for sign in (1, -1):
            x = sign * inputs.abs()
            torch.testing.assert_close(folded(x), net.eval()(x))
        assert folder(net.state_dict()).keys() == dict(folded.named_parameters()).keys()
        for name, value in folder(net.state_dict()).items():
            torch.testing.assert_close(value, folded.get_parameter(name))
