import math

import numpy as np
import pytest

from converters.faults import tell
from coordinator.strategies.base import State
from coordinator.strategies.presets import PRESETS, base_faults, fleet_faults, stage_faults, stages_of

SERVED_WITHOUT_CALIBRATION = sorted(name for name, stages in PRESETS.items() if not stages.needs_calibration)


@pytest.mark.parametrize("name", PRESETS)
def test_a_preset_has_no_fault_of_its_own(name):
    assert list(stage_faults(name, {}, None)) == []


@pytest.mark.parametrize("name", SERVED_WITHOUT_CALIBRATION)
def test_the_same_buffer_gives_the_same_version_and_nothing_given_changes(
    name, random_adapter, update, strategy
):
    master = random_adapter(2, 1)
    copies = {key: (f.a.copy(), f.b.copy()) for key, f in master}
    buffer = [
        update(random_adapter(2, 3), master, name="x", num_examples=2),
        update(random_adapter(2, 4), random_adapter(2, 5), name="y", staleness=2),
    ]
    if stages_of(name, {}, None).trigger == "arrival":
        buffer = buffer[1:]
    first, second = (strategy(name).merge(State(9, master), buffer) for _ in range(2))
    assert first == second
    assert first[0].version == 10
    assert first[1].strategy == name
    for key, f in master:
        assert np.array_equal(f.a, copies[key][0])
        assert np.array_equal(f.b, copies[key][1])


@pytest.mark.parametrize(
    ("changes", "rate", "grace"),
    [
        ({"staleness": "hinge"}, 10.0, 4),
        ({"staleness": "hinge", "staleness_rate": 2.0}, 2.0, 4),
        ({"staleness": "exponential"}, 0.2, 0),
        ({"staleness_rate": 3.0}, 3.0, 0),
    ],
)
def test_another_kind_of_staleness_brings_its_papers_numbers(changes, rate, grace):
    stages = stages_of("fedasync", changes, None)
    assert (stages.staleness_rate, stages.staleness_grace) == (rate, grace)


def test_the_stages_in_force_can_be_read_back_as_changes():
    stages = stages_of("fedasync", {"staleness": "hinge", "staleness_rate": 2.0}, "product")
    table = {field: getattr(stages, field) for field in stages.__struct_fields__}
    assert stages_of("fedbuff", table | {"order": list(stages.order)}, None) == stages


@pytest.mark.parametrize(
    ("name", "changes", "space", "parts"),
    [
        ("fedbuff", {"order": ["freshnes"]}, None, ["stages.order has 'freshnes', expected some of group,"]),
        ("fedbuff", {"order": ["clip", "clip"]}, None, ["has clip more than once: leave"]),
        ("fedbuff", {"order": ["align", "group"]}, None, ["has align without group before it: put group"]),
        ("fedbuff", {"order": ["centre-literal"]}, None, ["centre-literal without group before it"]),
        ("fedbuff", {"order": ["group", "centre", "centre-literal"]}, None, ["two readings of one equation"]),
        ("fedasync", {"order": ["mix", "normalise"]}, None, ["normalise after mix, which undoes it"]),
        (
            "fedbuff",
            {"merge": "median"},
            None,
            ["stages.merge median merges factors", "set space to factors"],
        ),
        ("fedavg", {"merge": "trimmed-mean"}, "product", ["stages.merge trimmed-mean merges factors"]),
        ("lora-fair", {}, "product", ["stages.merge fair merges factors"]),
        ("fedex-lora", {}, "product", ["stages.merge residual merges factors"]),
        ("fedex-lora", {"guard": "backtrack"}, None, ["without its residual: set stages.guard to none"]),
        ("fedex-lora", {"order": ["cosine"]}, None, ["without its residual"]),
        ("fedex-lora", {"optimizer": "fedadam"}, None, ["stages.optimizer is fedadam: set it to none"]),
        ("fedbuff", {"optimizer": "fedadam"}, "product", ["fedadam, which squares", "space to factors"]),
        ("ffa-lora", {}, "product", ["stages.trains is b and stages.keeps none", "set space to factors"]),
        ("fedsa-lora", {}, "product", ["stages.keeps b", "set space to factors"]),
        ("fedbuff", {"trains": "a"}, "factors", ["stages.trains is a, and B is zero at the start"]),
        ("ffa-lora", {"keeps": "b"}, None, ["nothing is left to merge"]),
        ("fedsa-lora", {"guard": "backtrack"}, None, ["nothing to judge for a guard: leave them out"]),
        ("fedsa-lora", {"order": ["product-norm"]}, None, ["nothing to judge for product-norm"]),
        ("fedbuff", {"trim": 0.5}, None, ["stages.trim is 0.5: Expected `float` < 0.5"]),
        ("fedbuff", {"clip_ratio": math.nan}, None, ["stages.clip_ratio is nan"]),
        ("fedbuff", {"staleness_rate": math.inf}, None, ["stages.staleness_rate is inf, expected a finite"]),
        ("fedbuff", {"mixing": 1.5}, None, ["stages.mixing is 1.5: Expected `float` <= 1.0"]),
        ("fedbuff", {"staleness": "linear"}, None, ["stages.staleness is 'linear'"]),
        ("flora", {"remainder_decay": 1.1}, None, ["stages.remainder_decay is 1.1: Expected `float` <= 1.0"]),
        ("fedbuff", {"hurry": 1}, None, ["stages.hurry unknown; expected some of order"]),
    ],
)
def test_a_fault_says_what_came_and_what_to_do(name, changes, space, parts):
    (fault,) = stage_faults(name, changes, space)
    for part in parts:
        assert part in tell("stages", [fault])


def test_all_faults_of_the_stages_are_told_at_once():
    changes = {"order": ["align", "clip", "clip"], "merge": "residual", "trains": "a"}
    assert len(list(stage_faults("fedbuff", changes, None))) == 6


def test_strategies_of_one_rank_are_refused_to_a_fleet_of_two():
    for name in ("fedex-lora", "lora-fair"):
        (fault,) = fleet_faults(stages_of(name, {}, None), (8, 4), 32)
        assert fault.startswith("ranks is [8, 4], and stages.merge")
        assert list(fleet_faults(stages_of(name, {}, None), (8,), 32)) == []
    assert list(fleet_faults(stages_of("hetlora", {}, None), (8, 4), 0)) == []


def test_a_residual_needs_rows_to_be_carried_in():
    (fault,) = fleet_faults(stages_of("fedex-lora", {}, None), (8,), 0)
    assert fault.startswith("remainder_rank is 0")
    assert "give at least 1" in fault


def test_fedex_lora_is_refused_on_a_quantised_base():
    (fault,) = base_faults(stages_of("fedex-lora", {}, None), is_quantized=True)
    assert "fedex-lora" in fault
    assert "full precision" in fault
    assert list(base_faults(stages_of("fedex-lora", {}, None), is_quantized=False)) == []
    assert list(base_faults(stages_of("flora", {}, None), is_quantized=True)) == []
