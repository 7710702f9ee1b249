"""Recipes: YAML and `key=value` changes in, settings out, and one sentence for whatever does not fit."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Literal

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from pydantic import Field, ValidationError, field_validator, model_validator

from netspace import config
from netspace.config import (
    KindSettings,
    Seed,
    Settings,
    apply_change,
    bundled_names,
    changed,
    find,
    load,
    read_back,
    resumed,
    to_yaml,
    validate,
)
from netspace.errors import NetspaceError, UsageError

PRINTABLE = st.characters(codec="utf-8", exclude_categories=("Cc", "Cs", "Zl", "Zp"))


class Part(Settings):
    latent: int = Field(64, ge=1)
    kind: Literal["conv", "probe"] = "conv"


class Recipe(Settings):
    name: str
    rate: float | tuple[float, float] = 1e-3
    part: Part = Part()
    parts: dict[str, Part] = Field({})
    list_of: tuple[Part, ...] = ()
    path: Path | None = None

    @field_validator("name")
    @classmethod
    def _short(cls, name: str) -> str:
        if len(name) > 200:
            raise ValueError("a name has at most 200 letters")
        return name


def test_a_file_with_changes(tmp_path: Path) -> None:
    file = tmp_path / "a.yaml"
    file.write_text("name: one\npart: {latent: 8}\nparts:\n  x: {kind: probe}\nlist_of: [{latent: 1}, {latent: 2}]\n")
    read = load(
        Recipe,
        file,
        ["part.latent=16", "parts.x.latent=32", "parts.y={}", "list_of.1.latent=3", "rate=[1, 2]"],
    )
    assert read.part == Part(latent=16) and read.parts == {"x": Part(latent=32, kind="probe"), "y": Part()}
    assert [part.latent for part in read.list_of] == [1, 3] and read.rate == (1.0, 2.0)


def test_numbers_without_a_dot_are_numbers() -> None:
    """YAML 1.1 takes 1e-3 for text."""
    assert load(Recipe, {"name": "a"}, ["rate=1e-3"]).rate == 0.001
    assert load(Recipe, {"name": "a"}, ["rate=1"]).rate == 1.0


def test_the_callers_mapping_is_left_alone() -> None:
    source = {"name": "a", "part": {"latent": 8}, "list_of": [{"latent": 1}]}
    assert load(Recipe, source, ["part.latent=9", "list_of.0.latent=2"]).part.latent == 9
    assert source == {"name": "a", "part": {"latent": 8}, "list_of": [{"latent": 1}]}


@given(
    st.text(PRINTABLE, max_size=20),
    st.floats(allow_nan=False) | st.tuples(st.floats(0, 1), st.floats(1, 2)),
    st.integers(1),
)
def test_yaml_round_trip(name: str, rate: float | tuple[float, float], latent: int) -> None:
    recipe = Recipe(name=name, rate=rate, parts={name: Part(latent=latent, kind="probe")}, path=Path("a/b"))
    assert load(Recipe, yaml.safe_load(to_yaml(recipe))) == recipe


def test_settings_of_kinds_need_a_table() -> None:
    class Without(KindSettings):
        pass

    class With(Without):
        @classmethod
        def table(cls) -> dict[str, type]:
            return {"a": object, "b": object}

    with pytest.raises(TypeError, match="abstract"):
        Without(kind="a")
    assert With(kind="a").kind == load(With, {"kind": "a"}).kind == "a"
    with pytest.raises(UsageError, match="Input should be 'a' or 'b'"):
        load(With, {"kind": "c"})


def test_settings_are_frozen_and_closed() -> None:
    part = Part()
    with pytest.raises(ValidationError):
        part.latent = 3  # type: ignore[misc]
    with pytest.raises(ValidationError):
        Part(latnet=3)  # type: ignore[call-arg]


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (
            "latnet=3",
            "did you mean 'rate'? There are: name, rate, part, parts, list_of, path. It is in the settings.",
        ),
        (
            "part.latnet=3",
            "unknown setting 'part.latnet': did you mean 'part.latent'? There are: part.latent, part.kind.",
        ),
        (
            "parts.x.latnet=3",
            "unknown setting 'parts.x.latnet': did you mean 'parts.x.latent'? There are: parts.x.latent",
        ),
        ("parts.kind.latnet=3", "unknown setting 'parts.kind.latnet': did you mean 'parts.kind.latent'?"),
        ("list_of.0.latnet=3", "unknown setting 'list_of.0.latnet': did you mean 'list_of.0.latent'?"),
        (
            "part.latent=0",
            "setting part.latent in the settings: Input should be greater than or equal to 1 (found: 0)",
        ),
        ("part.latent=many", "setting part.latent in the settings: Input should be a valid integer"),
        ("part.kind=cnv", "Input should be 'conv' or 'probe' (found: 'cnv')"),
        (f"name={'x' * 201}", "setting name in the settings: a name has at most 200 letters (found: 'xxx"),
        ("part", "--set takes key=value (such as --set seed=1), not 'part'"),
        ("=3", "--set takes key=value (such as --set seed=1), not '=3'"),
        ("part={", "--set part={: the value does not parse as YAML"),
        ("name.x=3", "--set name.x=3: name is a single value, it has no parts"),
        ("list_of.7.latent=3", "list_of is a list of 1; '7' is not an index of it"),
        ("list_of.x=3", "list_of is a list of 1; 'x' is not an index of it"),
    ],
)
def test_what_does_not_fit_is_one_sentence(change: str, told: str) -> None:
    with pytest.raises(UsageError) as caught:
        load(Recipe, {"name": "a", "list_of": [{}]}, [change])
    text = str(caught.value)
    assert told in text and "\n" not in text and len(text) < 400


class Range(Settings):
    low: int = 0
    high: int = 0
    words: dict[str, int] = Field({})

    @model_validator(mode="after")
    def _ordered(self) -> Range:
        if self.low > self.high:
            raise ValueError("low is above high")
        return self


class Ranges(Settings):
    inner: Range = Range()


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ({"low": 1}, "a.yaml as a whole: low is above high"),
        (
            {"high": -1, "words": {f"word{number}": number for number in range(99)}},
            "a.yaml as a whole: low is above high",
        ),
        ({"low": list(range(99))}, "setting low in a.yaml: Input should be a valid integer (found: list of 99)"),
        (
            {"low": "x" * 99},
            "setting low in a.yaml: Input should be a valid integer, unable to parse string as an integer "
            f"(found: '{'x' * 40}' and 59 letters more)",
        ),
        (
            {"low": {f"k{number}": 0 for number in range(10)}},
            "setting low in a.yaml: Input should be a valid integer "
            "(found: a group of k0, k1, k2, k3, k4, k5, k6, k7 and 2 more)",
        ),
        ({"low": {}}, "setting low in a.yaml: Input should be a valid integer (found: a group of nothing)"),
        ({"words": "\0" * 30}, f"setting words in a.yaml: Input should be a valid dictionary (found: {chr(0) * 30!r})"),
        (
            {"low": 1.5},
            "setting low in a.yaml: Input should be a valid integer, got a number with a fractional part (found: 1.5)",
        ),
    ],
)
def test_what_was_found_is_told_in_a_few_words(given: dict[str, object], told: str) -> None:
    with pytest.raises(UsageError) as caught:
        validate(Range, given, "a.yaml")
    assert str(caught.value) == told


def test_a_group_as_a_whole_is_told_by_its_place() -> None:
    with pytest.raises(UsageError) as caught:
        validate(Ranges, {"inner": {"low": 3}}, "a.yaml")
    assert str(caught.value) == "setting inner in a.yaml: low is above high"


def test_a_missing_setting_is_named() -> None:
    with pytest.raises(
        UsageError, match=r"setting 'name' is missing in the settings: it has no default and must be given"
    ):
        load(Recipe, {})


@pytest.mark.parametrize("text", ["a: [", "\t", "a: !!python/object/apply:os.system ['touch hacked']", "%"])
def test_a_file_that_is_no_yaml_is_one_sentence_and_runs_nothing(tmp_path: Path, text: str) -> None:
    file = tmp_path / "bad.yaml"
    file.write_text(text)
    with pytest.raises(
        UsageError, match=r"bad.yaml was expected to be a recipe in YAML, but it does not parse"
    ) as caught:
        load(Recipe, file)
    assert "\n" not in str(caught.value)
    assert not Path("hacked").exists()


def test_a_file_of_other_bytes_and_of_other_yaml(tmp_path: Path) -> None:
    file = tmp_path / "a.yaml"
    file.write_bytes(b"\xff\xfe\x00\x80")
    with pytest.raises(UsageError, match="cannot be read as text"):
        load(Recipe, file)
    for text, kind in [("- 1\n", "list"), ("", "NoneType"), ("hello", "str")]:
        file.write_text(text)
        with pytest.raises(UsageError, match=rf"recipe of `name: value` lines, but holds {kind}"):
            load(Recipe, file)


@pytest.fixture()
def bundle(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "configs"
    (folder / "zoo").mkdir(parents=True)
    (folder / "zoo" / "tiny.yaml").write_text("name: bundled\n")
    monkeypatch.setattr(config, "bundled_folder", lambda: folder)
    return folder


@pytest.mark.parametrize("name", ["zoo/tiny", "zoo/tiny.yaml", "configs/zoo/tiny.yaml", "configs/zoo/tiny"])
def test_bundled_recipes_by_name(bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert bundled_names() == ["zoo/tiny"]
    assert find(name) == bundle / "zoo" / "tiny.yaml"
    assert load(Recipe, name).name == "bundled"


def test_a_path_goes_before_a_bundled_name_and_an_unknown_one_is_told(bundle: Path) -> None:
    Path("zoo").mkdir()
    Path("zoo/tiny").write_text("name: own\n")
    assert load(Recipe, "zoo/tiny").name == "own"
    with pytest.raises(UsageError) as caught:
        find("zoo/tinny")
    assert str(caught.value) == (
        "unknown recipe 'zoo/tinny': did you mean 'zoo/tiny'? There are: zoo/tiny. "
        "Or give the path of a YAML file that exists."
    )


def test_every_bundled_recipe_is_found() -> None:
    for name in bundled_names():
        assert find(name).is_file()


def test_a_file_that_a_program_wrote_is_no_usage_error(tmp_path: Path) -> None:
    file = tmp_path / "config.yaml"
    file.write_text(to_yaml(Recipe(name="a")))
    assert read_back(Recipe, file) == Recipe(name="a")
    file.write_text("name: a\nold_setting: 3\n")
    with pytest.raises(
        NetspaceError, match="was not written by this version of netspace: unknown setting 'old_setting'"
    ) as caught:
        read_back(Recipe, file)
    assert not isinstance(caught.value, UsageError)


def test_a_negative_seed_is_refused_unless_an_earlier_version_wrote_it(tmp_path: Path) -> None:
    class Seeded(Settings):
        seed: Seed = 0

    with pytest.raises(
        UsageError, match=r"setting seed in the settings: Input should be greater than or equal to 0 \(found: -1\)"
    ):
        load(Seeded, {}, ["seed=-1"])
    assert load(Seeded, {"seed": 2**63 - 1}).seed == 2**63 - 1
    (tmp_path / "config.yaml").write_text("seed: -1")
    assert read_back(Seeded, tmp_path / "config.yaml").seed == resumed(Seeded, tmp_path / "config.yaml", []).seed == -1
    assert resumed(Seeded, tmp_path / "config.yaml", ["seed=3"]).seed == 3
    with pytest.raises(UsageError, match="seed"):
        load(Seeded, tmp_path / "config.yaml")


def test_changes_make_the_groups_they_need() -> None:
    raw: dict[str, object] = {}
    apply_change(raw, "a.b.c=1")
    apply_change(raw, "a.b.d=.inf")
    apply_change(raw, "e=a=b")
    assert raw == {"a": {"b": {"c": 1, "d": math.inf}}, "e": "a=b"}


def test_the_change_is_told_by_its_name() -> None:
    assert changed({"a": 1, "b": {"c": [1]}}, {"a": 1, "b": {"c": [1]}}) == ""
    assert changed({"a": 1, "b": {"c": 1}}, {"a": 1, "b": {"c": 2}}) == "b.c was 1 and is 2 now"
    assert changed({}, {"x": None, "y": 2}) == "y was None and is 2 now"
    stages = {"stages": [{"pool": 3, "steps": 1}, {"pool": 64, "steps": 1}]}
    other = {"stages": [{"pool": 3, "steps": 1}, {"pool": 32, "steps": 1}]}
    assert changed(stages, other) == "stages.1.pool was 64 and is 32 now" and changed(stages, stages) == ""


def test_an_item_of_a_list_is_changed_where_the_recipe_leaves_the_list_out() -> None:
    class Part(Settings):
        steps: int = 8
        rate: float = 0.5

    class Whole(Settings):
        parts: tuple[Part, ...] = (Part(steps=3),)
        part: Part = Part()

    assert load(Whole, {}, ["parts.0.rate=2"]).parts == (Part(steps=3, rate=2),)
    assert load(Whole, {"parts": [{}, {}]}, ["parts.1.steps=4"]).parts == (Part(), Part(steps=4))
    with pytest.raises(UsageError, match=r"--set parts.1.steps=4: parts is a list of 1; '1' is not an index of it"):
        load(Whole, {}, ["parts.1.steps=4"])
    with pytest.raises(UsageError, match=r"unknown setting 'part.0'"):
        load(Whole, {}, ["part.0=4"])
