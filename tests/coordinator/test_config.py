import math
import tomllib
from pathlib import Path

import msgspec
import pytest
import tomli_w

from coordinator.config import config_text, read_config
from coordinator.limits import Limits
from edge.errors import ConfigError


@pytest.fixture
def given(tmp_path):
    (tmp_path / "base").mkdir()
    return {
        "broker": "mqtt://localhost", "fleet": "home", "base": str(tmp_path / "base"),
        "state": str(tmp_path / "s"),
    }  # fmt: skip


def test_what_is_printed_is_what_is_read(tmp_path, given):
    config = read_config(
        None,
        given | {"ranks": (8, 4), "recipe": {"lr": 0.01}, "devices": {"x": "ab" * 32}, "enrolment": "closed"},
    )
    (tmp_path / "c.toml").write_text(config_text(config))
    assert read_config(tmp_path / "c.toml", {}) == config
    assert tomllib.loads((tmp_path / "c.toml").read_text())["recipe"]["lr"] == 0.01


@pytest.mark.parametrize(
    "stages",
    [
        {},
        {"order": ["group", "freshness"], "guard": "none"},  # the flat form of release 0.1
        {"order": [{"kind": "align", "steps": 2}], "optimizer": {"kind": "fedavgm"}},
    ],
)
def test_the_method_in_force_are_shown_and_those_of_the_strategy_are_comments(tmp_path, given, stages):
    data = tmp_path / "calibration.jsonl"
    data.write_text("")
    config = read_config(
        None, given | {"strategy": "alignfed", "stages": stages, "calibration_data": str(data)}
    )
    text = config_text(config)
    (tmp_path / "c.toml").write_text(text)
    assert read_config(tmp_path / "c.toml", {}) == config
    assert ('# order = [\n#     { kind = "centre" },' in text) is not bool(stages)
    assert '# merge = { kind = "sum" }' in text
    uncommented = text.replace("# Of alignfed:\n", "").replace("\n# ", "\n")
    (tmp_path / "c.toml").write_text(uncommented)
    assert read_config(tmp_path / "c.toml", {}).method_in_force == config.method_in_force
    other = read_config(tmp_path / "c.toml", {"strategy": "fedbuff", "stages": {}})
    assert other.method_in_force.kinds() == ["freshness"]


def test_what_the_stages_ask_of_devices_is_in_their_recipe(given):
    plain = read_config(None, given | {"strategy": "alignfed-literal", "stages": {"order": ["group"]}})
    assert (plain.recipe_in_force(8).pull, plain.recipe.pull) == (0.1, 0.0)
    given |= {"recipe": {"steps": 3, "pull": 0.7}}
    own = read_config(None, given | {"strategy": "alignfed-literal", "stages": {"order": ["group"]}})
    assert own.recipe_in_force(8).pull == 0.7
    assert read_config(None, given | {"strategy": "ffa-lora"}).recipe_in_force(8).trains == "b"
    assert read_config(None, given | {"strategy": "fedsa-lora"}).recipe_in_force(8).keeps == "b"
    assert read_config(None, given | {"strategy": "fedex-lora"}).recipe_in_force(8).train_rank == 8
    assert read_config(None, given).recipe_in_force(8).train_rank == 0


def test_the_command_line_stands_above_the_file_field_by_field(tmp_path, given):
    (tmp_path / "c.toml").write_text(
        tomli_w.dumps(given | {"buffer_size": 7, "recipe": {"steps": 3, "lr": 0.5}})
    )
    config = read_config(
        tmp_path / "c.toml", {"buffer_size": 9, "scale": None, "recipe": {"lr": 0.1, "steps": None}}
    )
    assert (config.buffer_size, config.recipe.steps, config.recipe.lr) == (9, 3, 0.1)


def test_a_recipe_given_in_part_keeps_the_default_steps(given):
    assert (
        read_config(None, given | {"recipe": {"lr": 0.1}}).recipe.steps
        == read_config(None, given).recipe.steps
    )


def test_all_faults_of_a_kind_are_told_at_once(tmp_path, given):
    (tmp_path / "c.toml").write_text(
        'fleet = 3\nbuffer_size = "x"\ncolour = "red"\n[recipe]\nsteps = "many"\n'
    )
    with pytest.raises(ConfigError) as caught:
        read_config(tmp_path / "c.toml", {})
    for part in (
        "c.toml",
        "colour",
        "broker is missing",
        "fleet is 3:",
        "buffer_size is",
        "recipe is",
        "$.steps",
    ):
        assert part in caught.value.whole


@pytest.mark.parametrize(
    ("changes", "part"),
    [
        ({"fleet": "Home"}, "fleet is 'Home', expected 1 to 64 of a-z"),
        ({"ranks": (4, 8)}, "ranks is [4, 8]"),
        ({"ranks": (0,)}, "ranks is [0]"),
        ({"adapter": "/nowhere/at/all"}, "adapter is '/nowhere/at/all', which does not exist"),
        ({"scale": 0.0}, "scale is 0.0"),
        ({"buffer_size": 0}, "buffer_size is 0, expected at least 1"),
        ({"keep_versions": 0}, "keep_versions is 0, expected at least 1"),
        ({"hold_s": -1.0}, "hold_s is -1.0, expected at least 0"),
        ({"devices_file": "no-such.txt"}, "devices_file is 'no-such.txt', which does not exist"),
        ({"recipe": {"steps": 0}}, "recipe.steps and recipe.seconds are both 0"),
        ({"max_norm": 0.0}, "max_norm is 0.0"),
        ({"chunk_bytes": 10}, "chunk_bytes is 10"),
        ({"base": "/nowhere/at/all"}, "base is '/nowhere/at/all', which does not exist"),
        (
            {"strategy": "fedbuf"},
            "strategy is 'fedbuf', expected one of fedavg, fedasync, fedbuff, alignfed, alignfed-literal,",
        ),
        ({"stages": {"order": ["groop"]}}, "stages.order has 'groop', expected some of absolute, mix,"),
        ({"stages": {"gard": "backtrack"}}, "stages.gard unknown, did you mean guard?"),
        (
            {"stages": {"guard": "truth"}},
            "stages.guard is 'truth', expected one of none, backtrack",
        ),
        (
            {"strategy": "alignfed", "stages": {"guard": "backtrack"}},
            "strategy alignfed has no calibration data for align and guard backtrack; set calibration_data "
            "(--calibration FILE), or take them out in [stages]",
        ),
        ({"calibration_data": "/nowhere/c.jsonl"}, "calibration_data is '/nowhere/c.jsonl', which does not"),
        ({"strategy": "fedex-lora", "ranks": (8, 4)}, "ranks is [8, 4], and stages.merge residual"),
        (
            {"recipe": {"steps": 1, "trains": "a"}},
            "recipe has trains 'a', which the strategy says: see --strategy",
        ),
        (
            {"recipe": {"steps": 1, "trains": "b", "keeps": "b"}},
            "recipe has trains 'b' and keeps 'b', which the strategy says: see --strategy and [stages]",
        ),
        ({"recipe": {"steps": 1, "pull": math.inf}}, "recipe.pull is inf, expected a finite number"),
        ({"recipe": {"steps": 1, "lr": math.nan}}, "recipe.lr is nan, expected a finite number"),
        ({"stages": {"pull": math.inf}}, "stages.pull is inf, expected a finite number"),
        ({"tls_cert": "/nowhere"}, "tls_cert and tls_key belong together"),
    ],
)
def test_a_value_that_cannot_be_used_is_named(given, changes, part):
    with pytest.raises(ConfigError) as caught:
        read_config(None, given | changes)
    assert part in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("content", [b"= 3", b"\xff\xfe"])
def test_a_file_that_is_not_toml_is_named(tmp_path, content):
    (tmp_path / "c.toml").write_bytes(content)
    with pytest.raises(ConfigError, match=r"c\.toml: is not TOML"):
        read_config(tmp_path / "c.toml", {})
    with pytest.raises(ConfigError, match="cannot be read"):
        read_config(tmp_path / "none.toml", {})


def test_without_a_name_the_strategy_goes_by_whether_there_is_a_calibration_set(given, tmp_path):
    assert read_config(None, given).strategy_in_force == "fedbuff"
    data = tmp_path / "calibration.jsonl"
    data.touch()
    assert read_config(None, given | {"calibration_data": str(data)}).strategy_in_force == "tunefleet"


def test_terms_of_privacy_are_a_table_and_stand_in_what_is_printed(tmp_path, given):
    table = {"unit": "device", "clip_norm": 0.3, "noise": 0.8, "at": "coordinator"}
    config = read_config(None, given | {"privacy": table, "space": "factors"})
    (tmp_path / "c.toml").write_text(config_text(config))
    assert read_config(tmp_path / "c.toml", {}) == config
    assert tomllib.loads((tmp_path / "c.toml").read_text())["privacy"] == table
    plain = tomllib.loads(config_text(read_config(None, given)))["privacy"]
    assert plain == {"unit": "none", "clip_norm": 1.0, "noise": 1.0, "at": "device"}


@pytest.mark.parametrize(
    ("privacy", "fault"),
    [
        ({"unit": "person"}, "unit"),
        ({"noise": -1.0}, "noise"),
        ({"clip_norm": 0.0}, "clip_norm"),
        ({"clip_norm": math.inf}, "clip_norm"),
        ({"unit": "example", "at": "coordinator"}, "privacy.unit example needs noise in every step"),
        ({"unit": "device", "at": "coordinator"}, "stages.merge is product: set space = "),
        ({"sigma": 1.0}, "sigma"),
    ],
)
def test_terms_that_cannot_be_kept_are_told_in_one_line(given, privacy, fault):
    with pytest.raises(ConfigError) as caught:
        read_config(None, given | {"privacy": privacy})
    assert fault in caught.value.whole
    assert "\n" not in str(caught.value)


def test_every_limit_stands_in_the_documents_with_its_default():
    page = (Path(__file__).parents[2] / "docs/operations.md").read_text()
    rows = [line.split(" | ") for line in page.splitlines() if line.startswith("| `")]
    told = {name.strip("| `"): default for name, default, *_ in rows}
    assert told == {name: str(value) for name, value in msgspec.structs.asdict(Limits()).items()}


def test_limits_are_changed_one_by_one_and_shown_with_the_others(tmp_path, given):
    config = read_config(None, given | {"limits": {"max_waiting": 7}})
    assert (config.limits.max_waiting, config.limits.max_devices) == (7, 10_000)
    (tmp_path / "c.toml").write_text(config_text(config))
    assert tomllib.loads(config_text(config))["limits"]["max_waiting"] == 7
    assert read_config(tmp_path / "c.toml", {}) == config
    with pytest.raises(ConfigError, match=r"limits is .*Expected `int` >= 1"):
        read_config(None, given | {"limits": {"max_waiting": 0}})
