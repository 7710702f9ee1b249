"""A zoo small enough to be built often."""

from __future__ import annotations

from typing import Any

import pytest

from model_zoo.recipe import ZooRecipe


@pytest.fixture
def small(zoo_settings: dict[str, Any]) -> ZooRecipe:
    """Eight networks of one or two epochs, two at once."""
    zoo_settings["members"] = {"train": 4, "val": 2, "test": 2}
    zoo_settings["epochs"] = {"first": 1, "last": 2}
    return ZooRecipe.model_validate({**zoo_settings, "fused": 2})
