"""Results of `netspace zoo ...`, `netspace data ...` and `netspace recipes ...`."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field

from netspace.results import Number, Part, Result, Score


class AccuracyRange(Part):
    """Test accuracies of the members of one architecture."""

    min: Number
    median: Number
    max: Number


class ArchInfo(Part):
    """One architecture of a zoo."""

    class_id: int
    arch: str
    settings: dict[str, Any]
    members: int
    diverged: int
    parameters: int
    prep: tuple[int, int]  # (H, W)
    accuracy: AccuracyRange


class ZooInfo(Result):
    """`netspace zoo info`, and the result of `build` and `merge`."""

    path: str
    version: int
    dataset: str
    members: int
    splits: dict[str, int]
    bytes: int
    archs: dict[str, ArchInfo]
    complete: bool
    content_hash: str
    versions: dict[str, str]
    score: Score | None = None  # what the accuracies are, where they are none
    shard: str | None = None  # of a file that is one: '3/10'
    shards: int | None = None  # of a folder: number of files


class Merge(Part):
    """What `netspace.zoo.merge` wrote."""

    members: int
    duplicates: int  # networks that were left out


class MergedZoo(ZooInfo):
    """`netspace zoo merge`."""

    duplicates: int  # networks that were left out


class ZooImport(Result):
    """`netspace zoo import`."""

    path: str
    arch: str
    imported: int
    duplicates: int  # networks that were in the zoo already
    runs: int  # trainings that the networks come from
    splits: dict[str, int]
    mean: list[float] = Field(default_factory=list)  # of each channel, by which images were standardised
    std: list[float] = Field(default_factory=list)
    accuracy_test: dict[str, Number]  # by file
    format: str | None = None  # of a zoo of another program
    diverged: int | None = None  # networks of it with values that are not finite


class MemberList(Result):
    """`netspace zoo list`."""

    path: str
    count: int  # members that meet the condition; those that are listed may be fewer
    columns: list[str]
    members: list[dict[str, Any]]  # by column


class MemberFile(Result):
    """`netspace zoo export`."""

    zoo: str
    member: str
    arch: str
    settings: dict[str, Any]
    parameters: int
    input_shape: list[int]  # of one input
    batch_norm: bool  # whether the network has batch norm, as the class that was trained; else it is folded
    accuracy_test: Number
    file: str


class Verification(Result):
    """`netspace zoo verify`."""

    path: str
    ok: bool
    checked: int
    re_evaluated: int
    problems: list[str]


class DataList(Result):
    """`netspace data list`: a description of each image set."""

    data: dict[str, str]


class DataFiles(Result):
    """`netspace data fetch`."""

    name: str
    path: str
    images: dict[str, int]  # by split
    split_hash: str


class ArchAlignment(Part):
    """One architecture of an aligned zoo; distances are L2 to the reference, means over the other members."""

    skipped: str | None = None  # why its networks were left as they were
    reference: str | None = None
    groups: int | None = None  # of channels
    distance_before: Number = None
    distance_after: Number = None


class ZooAlignment(Result):
    """`netspace zoo align`."""

    path: str
    archs: dict[str, ArchAlignment]


class Recipe(Part):
    """One bundled recipe."""

    name: str  # as `netspace zoo build`, `train` and `compress fit` take it
    kind: Literal["zoo", "space", "compress", "morph"]
    help: str  # the comment at the top of the file


class RecipeList(Result):
    """`netspace recipes list`."""

    recipes: list[Recipe]


class RecipeText(Result):
    """`netspace recipes show`."""

    name: str
    kind: str
    path: str
    text: str  # as it is written
    settings: dict[str, Any]  # resolved, defaults included


class Setting(Part):
    """One setting of a recipe."""

    name: str  # dotted, as --set takes it; NAME stands for a key of the user's choice, N for a position in a list
    type: str
    required: bool
    default: Any  # a JSON value; None if the setting is required
    help: str  # the comment on its line: unit and reason


class RecipeSchema(Result):
    """`netspace recipes schema`."""

    kind: str
    settings: list[Setting]
