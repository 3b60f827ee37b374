import json

import pytest
from typer.testing import CliRunner

import tunefleet
from edge.device.budget import Budget
from edge.errors import ConfigError, StateError
from edge.privacy.accounting import epsilon_of
from edge.privacy.terms import Terms, Wishes


def run(*options):
    return CliRunner().invoke(tunefleet.app, ["privacy", *map(str, options)], catch_exceptions=False)


def test_what_is_spent_can_be_asked_for(tmp_path):
    assert json.loads(run("--state", tmp_path, "--json").stdout)["epsilon_device"] == 0.0
    Budget(tmp_path, Wishes()).spend((1, 2, 3), Terms(unit="device", noise=1.0), 5)
    report = json.loads(run("--state", tmp_path, "--delta", 1e-6, "--json").stdout)
    assert report["num_hiding_device"] == 1
    assert report["delta"] == 1e-6
    assert report["epsilon_device"] == epsilon_of(1.0, 1e-6)
    assert "epsilon device" in run("--state", tmp_path).stdout


def test_what_cannot_be_asked_is_one_line(tmp_path):
    with pytest.raises(StateError, match="is no folder"):
        run("--state", tmp_path / "none")
    with pytest.raises(ConfigError, match="--delta is 1"):
        run("--state", tmp_path, "--delta", 1)
