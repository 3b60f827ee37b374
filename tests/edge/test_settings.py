"""Settings of a file and of the command line become one record, or one error that names every fault."""

import tomllib
from pathlib import Path

import pytest
from msgspec import Struct

from edge.errors import ConfigError
from edge.settings import checked, defaults_of, laid_over, path_faults, placed, write_toml


class Oven(Struct, frozen=True, kw_only=True):
    heat: int = 180
    fan: bool = False


class Kitchen(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    name: str
    oven: Oven = Oven()
    labels: dict[str, str] = {}
    chef: str | None = None


PLACES = {"heat": "oven.heat", "who": "chef"}


def test_options_go_to_their_places_and_what_was_not_given_is_left_out():
    options = {"name": "home", "heat": 200, "who": None, "wait": False, "fast": True}
    assert placed(options, PLACES) == {"name": "home", "oven": {"heat": 200}, "fast": True}


def test_a_record_is_laid_over_field_by_field_and_a_plain_table_whole():
    file = {"name": "home", "oven": {"fan": True}, "labels": {"a": "b"}}
    given = {"name": None, "oven": {"heat": 200}, "labels": {}}
    assert laid_over(file, given, Kitchen) == {
        "name": "home",
        "oven": {"fan": True, "heat": 200},
        "labels": {},
    }
    assert laid_over({}, {"oven": {"heat": 1, "fan": None}}, Kitchen) == {"oven": {"heat": 1, "fan": False}}


def test_faults_of_types_and_those_that_come_with_them_are_told_at_once():
    with pytest.raises(ConfigError) as caught:
        checked(Kitchen, {"chef": 3, "nam": "x"}, Path("k.toml"), faults=["the oven is cold"])
    for part in ("k.toml", "nam unknown", "name is missing", "chef is 3", "the oven is cold"):
        assert part in caught.value.whole


def test_values_are_judged_once_the_types_are_right():
    def judge(kitchen: Kitchen) -> list[str]:
        return [f"{kitchen.name} is no kitchen"]

    with pytest.raises(ConfigError, match="settings: hall is no kitchen"):
        checked(Kitchen, {"name": "hall"}, check=judge)


def test_what_is_written_is_read_again_without_what_is_none():
    text = write_toml(Kitchen(name="home", labels={"a": "b"}))
    assert tomllib.loads(text) == {"name": "home", "oven": {"heat": 180, "fan": False}, "labels": {"a": "b"}}


def test_a_default_is_found_where_its_option_has_its_place():
    assert defaults_of(Kitchen, ("name", "heat", "who"), PLACES) == {"heat": 180, "who": None}


def test_a_path_that_is_not_there_is_named(tmp_path):
    settings = {"here": str(tmp_path), "there": str(tmp_path / "no"), "open": None}
    assert list(path_faults(settings, "here", "there", "open")) == [
        f"there is '{tmp_path / 'no'}', which does not exist"
    ]
