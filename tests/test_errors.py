"""What a user reads when something is wrong: one sentence, the nearest choice, the right exit code."""

from __future__ import annotations

import pytest

from netspace.errors import NetspaceError, UsageError, unknown


def test_exit_codes_tell_bad_usage_from_failure() -> None:
    assert NetspaceError.exit_code == 1 and UsageError.exit_code == 2
    assert issubclass(UsageError, NetspaceError)


def test_unknown_shows_what_was_asked_the_nearest_choice_and_all_of_them() -> None:
    error = unknown("architecture", "resnet9", ["vanillacnn", "resnet8"], "Or name a file.")
    assert isinstance(error, UsageError)
    assert str(error) == (
        "unknown architecture 'resnet9': did you mean 'resnet8'? There are: vanillacnn, resnet8. Or name a file."
    )


@pytest.mark.parametrize("choices", [["digits", "cifar10"], iter(["digits", "cifar10"])])
def test_a_name_near_to_none_gets_no_guess(choices: object) -> None:
    assert str(unknown("data set", "zzz", choices)) == "unknown data set 'zzz': There are: digits, cifar10."  # type: ignore[arg-type]


def test_no_choices_and_names_that_are_no_text() -> None:
    assert str(unknown("run", 7, [])) == "unknown run '7': There are none."
    assert "There are: 1, 2." in str(unknown("class", 3, [1, 2]))
