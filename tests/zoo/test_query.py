"""Conditions on columns: the same members as a loop over Python's own comparisons, and nothing but comparisons."""

from __future__ import annotations

import math

import numpy as np
import pytest

from netspace.errors import UsageError
from netspace.zoo.query import MAX_LENGTH, matches

TABLE = {
    "accuracy": np.array([0.1, 0.9, math.nan, 0.5, 0.95]),
    "epochs": np.array([1, 8, 8, 3, 2]),
    "split": np.array(["train", "test", "train", "val", ""]),
}


def chosen(text: str) -> list[int]:
    return np.flatnonzero(matches(text, TABLE, lambda name: TABLE[name], 5)).tolist()


@pytest.mark.parametrize(
    "text",
    [
        "accuracy > 0.9",
        "accuracy >= 0.9",
        "0.2 < accuracy <= 0.9",
        "accuracy != accuracy",
        "not accuracy < 0.6",
        "split == 'train' and epochs == 8 or accuracy > 0.92",
        "split in ('val', 'test')",
        "split not in ['val', 'test'] and -epochs < -1",
        "epochs % 2 == 0",
        "epochs * 0.1 + accuracy / 2 - 0.1 > 0.4",
        "1 == 1",
        "split in ()",
        "split > 'tes'",
    ],
)
def test_conditions_choose_what_python_chooses(text: str) -> None:
    rows = [{name: values[index].item() for name, values in TABLE.items()} for index in range(5)]
    assert chosen(text) == [index for index, row in enumerate(rows) if eval(text, {}, row)]


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("accuracy >", "does not parse"),
        ("", "does not parse"),
        ("(" * 300, "does not parse"),
        ("-" * 1500 + "1 < accuracy", "is nested too deeply"),
        ("accuracy", "is no comparison"),
        ("accuracy > 0.9 and epochs", "joins 'epochs', which is no comparison"),
        ("accuracy > 'train'", r"compares a number with a text \(accuracy, 'train'\)"),
        ("-split == 'x'", "computes with 'split', which is no number"),
        ("split + 1 == 2", "computes with 'split', which is no number"),
        ("split is 'x'", r"compares by identity \('is'\)"),
        ("split in 'train'", "needs a list after 'in'"),
        ("__import__('os').system('true') == 0", "which is no column, number, text or comparison"),
        ("accuracy.__class__ == 1", "'accuracy.__class__', which is no column"),
        ("[x for x in (1, 2)] == 1", "which is no column, number"),
        ("epochs ** 9 > 1", r"'epochs \*\* 9', which is no column"),
        ("x" * (MAX_LENGTH + 1), "a condition of 2,001 characters was given"),
        ("acuracy > 0.9", r"unknown column 'acuracy': did you mean 'accuracy'\? There are: accuracy, epochs, split"),
    ],
)
def test_what_is_no_condition_is_refused(text: str, problem: str) -> None:
    with pytest.raises(UsageError, match=problem):
        chosen(text)
