"""Results of `netspace compress ...`.

Axes: L layers, K kernels, h w their sides.
"""

from __future__ import annotations

from typing import ClassVar, Literal, Self

from pydantic import Field, model_validator

from netspace.results import Number, Numbers, Part, Result, expect


class Sizes(Part):
    """Counts of values in a compressed file."""

    parameters_original: int | None = None
    parameters_represented: int | None = None
    parameters_predictor: int | None = None
    zeros: int | None = None  # represented values that a mask in the file of a coordinate network keeps exactly zero
    bytes_zeros: int | None = None  # of that mask


class OutputComparison(Part):
    """What two networks give for the same inputs without labels, compared: answers of logits, or errors of values."""

    count: int  # of inputs
    output: str | None = None  # the one that was picked
    agreement: Number = None
    overlap_top5: Number = None
    cosine: Number = None
    output_error: Number = None  # relative, a mean over outputs; None: answers are compared
    output_errors: dict[str, Number] = Field(
        default_factory=dict
    )  # of each output, where there are several or named ones


class ImageComparison(OutputComparison):
    """Outputs for images, compared."""

    size: int
    normalise: str
    mean: list[float]
    std: list[float]


class NoiseComparison(OutputComparison):
    """Outputs for noise U[-1, 1], compared."""

    input_shape: list[int]


class NetworkFigures(Part):
    """A network compared with the original."""

    relative_error: Number = None  # of the represented weights
    accuracy: Number = None
    agreement: Number = None
    images: ImageComparison | None = None
    noise: NoiseComparison | None = None


class WorkCost(Part):
    """What a computation costs."""

    seconds: float  # the median of several runs
    multiply_adds: int  # of matrix products and convolutions, as executed
    peak_bytes: int  # of tensors and arrays that it makes, the most at once


class InferenceCost(WorkCost):
    """One inference of a batch; its memory is beside that of the weights."""

    batch: int


class RebuildCost(Part):
    """The cost of computing all weights from a file, and of inferences of the rebuilt network."""

    runs: int
    threads: int
    rebuild: WorkCost  # reading the file, and computing all weights
    inference: list[InferenceCost] = Field(default_factory=list)  # empty where no architecture is known


class Compression(Sizes, Result):
    """`netspace compress eval`."""

    command: ClassVar[str] = "compress fit"
    file: str = "?"
    accuracy_original: Number = None
    accuracy_reconstructed: Number = None
    agreement: Number = None
    images: ImageComparison | None = None
    noise: NoiseComparison | None = None
    relative_error: Number = None
    bytes_original: int | None = None
    bytes_file: int | None = None
    larger: bool | None = None
    bits: int | None = None
    order: str | None = None
    order_bytes_paper: Number = None
    rebuild: RebuildCost | None = None  # with --rebuild


class FitRecord(Part):
    """One validation of a fit."""

    stage: int = 0
    step: int
    relative_error: Number = None
    accuracy_val: Number = None


class FitResult(Compression):
    """`netspace compress fit` and its `fit.json`."""

    seconds: Number = None
    precision: dict[str, str] = Field(default_factory=dict)
    curve: list[FitRecord] = Field(default_factory=list)


class NetworkMark(Result):
    """`network.json`: the hash of the network that a fit was begun with, and of its teachers."""

    hash: str


class KernelSamples(Result):
    """`kernels.json`: the first kernels (K, h, w) of one layer in both networks."""

    command: ClassVar[str] = "compress analyse"
    layer: str
    layers: int
    relative_error: float
    count: int  # of the layer's kernels
    original: list[list[list[float]]] = Field(min_length=1)
    reconstructed: list[list[list[float]]]

    @model_validator(mode="after")
    def _same_shape(self) -> Self:
        shapes = {(len(kernel), *map(len, kernel)) for kernel in [*self.original, *self.reconstructed]}
        (height, *widths), *others = shapes
        same = len(self.original) == len(self.reconstructed) and not others and height > 0
        expect(
            same and len(set(widths)) == 1 and widths[0] > 0,
            "kernels of a layer in both networks, all of one shape, were expected",
        )
        return self


class FilterMaps(Part):
    """Filters of a layer (K,), their relative errors, and the original's mean activations of each (K, h, w)."""

    filters: list[int] = Field(min_length=1)
    relative_errors: list[float]
    maps: list[list[list[float]]]

    @model_validator(mode="after")
    def _same_length(self) -> Self:
        shapes = {(len(each), *map(len, each)) for each in self.maps}
        sides = {len(set(shape[1:])) for shape in shapes}
        same = len(self.filters) == len(self.relative_errors) == len(self.maps) and len(shapes) == 1 and sides == {1}
        expect(same and 0 not in next(iter(shapes)), "an error and a map of one shape for each filter were expected")
        return self


class ActivationMaps(Result):
    """`activations.json`: what the filters of a layer do that are reconstructed best and worst."""

    command: ClassVar[str] = "compress analyse"
    layer: str
    count: int  # of the layer's filters
    images: int
    best: FilterMaps
    worst: FilterMaps  # the worst one first


class ByLayer(Part):
    """A value for each layer (L,) of the original and the reconstructed network."""

    original: Numbers
    reconstructed: Numbers


class Alignment(Part):
    """Linear CKA with the original by layer (L,)."""

    images: int | None = None
    reconstructed: Numbers
    random: Numbers


class ChangedNetwork(Part):
    """The original, changed by an amount."""

    amount: float
    accuracy: Number = None
    singular_ratio: Number = None


class Gap(Part):
    """Accuracy and cross-entropy (nats) on training and test images, and their differences."""

    accuracy_train: Number = None
    accuracy_test: Number = None
    loss_train: Number = None
    loss_test: Number = None
    gap_accuracy: Number = None
    gap_loss: Number = None


class Generalisation(Part):
    """The gaps of both networks."""

    training_images: int | None = None
    original: Gap
    reconstructed: Gap


class Analysis(Result):
    """`netspace compress analyse`; what needs data is None without them."""

    command: ClassVar[str] = "compress analyse"
    file: str = "?"
    layers: list[str]
    singular_ratio: ByLayer
    low_pass: list[ChangedNetwork] | None = None
    scale_small: list[ChangedNetwork] | None = None
    generalisation: Generalisation | None = None
    cka: Alignment | None = None

    @model_validator(mode="after")
    def _same_length(self) -> Self:
        count = len(self.layers)
        for name, values in (("singular_ratio", self.singular_ratio), ("cka", self.cka)):
            lengths = {len(each) for key, each in values or () if key in ("original", "reconstructed", "random")}
            expect(lengths <= {count}, f"one {name} for each of {count} layers was expected")
        return self


class PrunedNetwork(NetworkFigures):
    """A network with a share of its weights set to zero."""

    share: float
    weights: int | None = None  # that are left


class Pruning(Sizes, Result):
    """`netspace compress prune`: the predictor pruned, and the original's represented weights pruned directly."""

    command: ClassVar[str] = "compress prune"
    file: str = "?"
    accuracy_original: Number = None
    predictor: list[PrunedNetwork] = Field(default_factory=list)
    original: list[PrunedNetwork] = Field(default_factory=list)


class StoredNetwork(NetworkFigures):
    """A network and what it takes on disk."""

    bytes: int


QuantisedKind = Literal["original", "original_quantised", "reconstructed", "quantised"]


class Quantisation(Sizes, Result):
    """`netspace compress quantise`."""

    command: ClassVar[str] = "compress quantise"
    file: str = "?"
    out: str = "?"
    bits: int | None = None
    bytes_original: int | None = None
    relative_change: Number = None
    networks: dict[QuantisedKind, StoredNetwork] = Field(default_factory=dict)


class Correction(Result):
    """`netspace compress correct`."""

    file: str
    out: str
    shown: str  # the kind of inputs
    count: int
    normalise: str | None = None
    mean: list[float] = Field(default_factory=list)
    std: list[float] = Field(default_factory=list)
    corrected: list[str]
    bytes_before: int
    bytes_after: int


class Reconstruction(Sizes, Result):
    """`netspace compress reconstruct`."""

    file: str
    tensors: int


class FilterError(Part):
    """The relative error of one filter."""

    layer: str
    filter: int
    relative_error: float


class Importance(Result):
    """`netspace compress importance`: filters, those that are represented best first."""

    file: str
    count: int
    filters: list[FilterError]
