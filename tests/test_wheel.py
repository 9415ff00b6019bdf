"""What is tested is what users install."""

from __future__ import annotations

import os
import sysconfig
from importlib.metadata import metadata, requires, version
from importlib.resources import files
from pathlib import Path

import pytest
from packaging.requirements import Requirement

import idempo


@pytest.mark.skipif("IDEMPO_TEST_WHEEL" not in os.environ, reason="tests of a checkout; tox tests the wheel")
def test_the_wheel_is_tested_and_not_the_checkout() -> None:
    """Under tox the package comes from site-packages."""
    assert Path(idempo.__file__).is_relative_to(sysconfig.get_path("purelib"))


@pytest.mark.skipif("IDEMPO_TEST_LOWEST" not in os.environ, reason="no lowest versions here: tox -e lowest")
def test_the_lowest_versions_are_the_ones_promised() -> None:
    """What `lowest` installs is the lower bound that the package declares, for each dependency and extra."""
    lowest = {}
    for line in requires("idempo") or ():
        requirement = Requirement(line)
        lowest.update((requirement.name, spec.version) for spec in requirement.specifier if spec.operator == ">=")
    assert {"attrs", "cachetools", "cryptography", "hypothesis", "pytest"} <= lowest.keys()
    padded = {name: tuple(map(int, bound.split("."))) for name, bound in lowest.items()}
    installed = {name: tuple(map(int, version(name).split("."))) for name in lowest}
    assert {name: installed[name][: len(bound)] for name, bound in padded.items()} == padded
    assert all(not any(installed[name][len(bound) :]) for name, bound in padded.items())


def test_the_package_is_typed() -> None:
    """A user's type checker finds the marker that lets it read the types."""
    assert files("idempo").joinpath("py.typed").is_file()


@pytest.mark.skipif("IDEMPO_TEST_WHEEL" not in os.environ, reason="a checkout has no metadata; tox tests the wheel")
def test_all_is_what_production_may_want() -> None:
    """Every extra, but not pytest and Hypothesis; and what SQLAlchemy needs for coroutines."""
    extras = set(metadata("idempo").get_all("Provides-Extra") or ())
    required = [Requirement(line) for line in requires("idempo") or ()]
    names = {
        name: {each.name for each in required if each.marker and each.marker.evaluate({"extra": name})}
        for name in extras
    }
    assert names["testing"] == {"pytest", "hypothesis"}
    assert names["all"] == set().union(*(names[extra] for extra in extras - {"testing"}))
    assert names["sqlalchemy"] == {"sqlalchemy", "greenlet"}
