import math

import msgspec
import pytest
import tomli_w

from converters.faults import tell
from coordinator.strategies import kinds
from coordinator.strategies.choice import METHODS
from coordinator.strategies.guard import Backtrack
from coordinator.strategies.merges.factors import Sum
from coordinator.strategies.merges.product import Product
from coordinator.strategies.method import Method
from coordinator.strategies.stages.clip import Clip
from coordinator.strategies.stages.contract import Stage
from coordinator.strategies.stages.cosine import Cosine
from coordinator.strategies.stages.credit import Credit
from coordinator.strategies.stages.weights import ExponentialFreshness, Freshness, HingeFreshness
from coordinator.strategies.written import (
    Stages,
    method_fields,
    method_table,
    read_method,
    read_stages,
    written_changes,
)


def read(name, changes, space=None):
    found = read_method(METHODS[name], changes, space)
    assert not found.faults
    return found.method


def test_a_method_is_written_as_tables_of_numbers():
    changes = {
        "order": [{"kind": "clip", "ratio": 3}, {"kind": "credit"}],
        "merge": {"kind": "product", "decay": 0.5},
        "guard": {"kind": "backtrack", "longest": 2.0},
    }
    method = read("fedavg", changes)
    assert method.order == (Clip(3.0), Credit())
    assert (method.merge, method.guard) == (Product(decay=0.5), Backtrack(longest=2.0, tries=4))
    assert method.trigger == "round"  # what is not written stays


def test_a_table_without_a_number_has_the_kinds_own_and_a_name_alone_the_strategys():
    assert read("tunefleet", {"order": [{"kind": "cosine"}]}).order == (Cosine(0.0),)
    assert read("tunefleet", {"order": ["cosine"]}).order == (Cosine(-0.05),)
    assert read("fedbuff", {"order": ["cosine"]}).order == (Cosine(0.0),)
    assert read("tunefleet", {"guard": {"kind": "backtrack"}}).guard == Backtrack(1.0, 4)
    assert read("tunefleet", {"guard": "backtrack"}).guard == Backtrack(4.0, 6)


@pytest.mark.parametrize("name", METHODS)
def test_what_is_written_down_is_what_is_read(name):
    table = msgspec.toml.decode(tomli_w.dumps(method_table(METHODS[name])).encode())
    for other in METHODS:
        assert read(other, table) == METHODS[name]
        assert read(other, method_fields(METHODS[name])) == METHODS[name]
    assert written_changes(METHODS[name], {}) == {}


def test_only_what_is_named_or_changed_is_written_down():
    flat = {"clip_ratio": 3.0, "guard": "backtrack"}
    assert written_changes(METHODS["tunefleet"], flat) == {
        "order": [
            {"kind": "clip", "ratio": 3.0},
            {"kind": "cosine", "floor": -0.05},
            {"kind": "credit", "cap": 1.0},
        ],
        "guard": {"kind": "backtrack", "longest": 4.0, "tries": 6, "tolerance": 0.0},
    }


def leaves(kind):
    found = [one for sub in kind.__subclasses__() for one in leaves(sub)] or [kind]
    return [one for one in found if one.__module__.startswith("coordinator.strategies.stages.")]


def test_every_stage_of_the_room_can_be_named():
    assert set(leaves(Stage)) == set(kinds.STAGES.values())


@pytest.mark.parametrize("field", kinds.FLAT)
def test_a_flat_number_goes_into_its_record_and_says_nothing_without_it(field):
    inner, records = kinds.FLAT[field]
    for record in records:
        value = False if field == "carries" else 3 if field in ("staleness_grace", "guard_tries") else 0.25
        value = 2 if field == "align_steps" else value
        others = {
            "optimizer": record.__struct_config__.tag if record in kinds.OPTIMIZERS.values() else "none",
            "merge": record.__struct_config__.tag if record in kinds.MERGES.values() else "sum",
            "guard": record.__struct_config__.tag if record in kinds.GUARDS.values() else "none",
            "order": [record.__struct_config__.tag] if record in kinds.STAGES.values() else [],
        }
        method = read("fedavg", others | {field: value})
        parts = (*method.order, method.merge, method.optimizer, method.guard)
        assert [getattr(part, inner) for part in parts if type(part) is record] == [value]
    assert read("fedavg", {field: value}) == METHODS["fedavg"]


@pytest.mark.parametrize(
    ("changes", "freshness"),
    [
        ({"staleness": "hinge"}, HingeFreshness(10.0, 4)),
        ({"staleness": "hinge", "staleness_rate": 2.0}, HingeFreshness(2.0, 4)),
        ({"staleness": "exponential"}, ExponentialFreshness(0.2)),
        ({"staleness_rate": 3.0}, Freshness(3.0)),
        ({"order": ["freshness"], "staleness": "exponential"}, ExponentialFreshness(0.2)),
    ],
)
def test_another_kind_of_staleness_brings_its_papers_numbers(changes, freshness):
    assert freshness in read("fedasync", changes).order


def test_in_the_flat_form_a_name_is_the_strategys_own_shape_of_freshness():
    assert read("alignfed", {"order": ["freshness"]}).order == (ExponentialFreshness(0.2),)
    assert read("fedasync", {"staleness": "constant"}).kinds() == ["absolute", "mix"]


def test_groups_are_there_without_being_asked_for():
    changes = {"order": ["group", "centre-literal", "inverse-norm"]}
    assert read("alignfed", changes).kinds() == ["centre-literal", "inverse-norm-literal"]
    assert read("fedavg", {"order": ["align"]}).kinds() == ["align"]


def test_a_method_of_release_0_1_is_made_in_python_as_it_was():
    stages = Stages(order=("freshness", "clip", "normalise"), space="product", optimizer="fedavgm")
    method = read_stages(stages).method
    assert method.kinds() == ["freshness", "clip", "normalise"]
    assert (method.space, method.optimizer.kind, method.guard) == ("product", "fedavgm", None)
    assert read_stages(Stages()).method == Method()


@pytest.mark.parametrize(
    ("name", "changes", "space", "merge"),
    [
        ("fedbuff", {}, "factors", Sum()),
        ("fedavg", {}, "product", Product()),
        ("fedavg", {"space": "product", "remainder_decay": 0.5}, None, Product(decay=0.5)),
        ("flora", {"merge": "sum"}, None, Product(decay=1.0)),
        ("fedex-lora", {"merge": "sum"}, None, Sum()),
        ("fedbuff", {"merge": {"kind": "sum"}}, None, Sum()),
        ("fedbuff", {"merge": {"kind": "product"}}, "factors", Sum()),
    ],
)
def test_the_space_chooses_the_sum(name, changes, space, merge):
    assert read(name, changes, space).merge == merge


@pytest.mark.parametrize(
    ("name", "changes", "space", "parts"),
    [
        (
            "fedbuff",
            {"order": ["freshnes"]},
            None,
            ["order has 'freshnes', expected some of absolute,"],
        ),
        ("fedbuff", {"order": ["clip", "clip"]}, None, ["has clip more than once: leave"]),
        ("fedbuff", {"order": ["group", "centre", "centre-literal"]}, None, ["two readings of one equation"]),
        ("fedasync", {"order": ["mix", "normalise"]}, None, ["normalise after mix, which undoes it"]),
        (
            "fedbuff",
            {"merge": "median"},
            "product",
            ["stages.merge median merges factors", "set space to factors"],
        ),
        ("fedavg", {"merge": "trimmed-mean"}, "product", ["stages.merge trimmed-mean merges factors"]),
        ("lora-fair", {}, "product", ["stages.merge fair merges factors"]),
        ("fedex-lora", {}, "product", ["stages.merge residual merges factors"]),
        ("fedex-lora", {"guard": "backtrack"}, None, ["without its residual: set stages.guard to none"]),
        ("fedex-lora", {"order": ["cosine"]}, None, ["without its residual"]),
        ("fedex-lora", {"optimizer": "fedadam"}, None, ["stages.optimizer is fedadam: set it to none"]),
        ("fedbuff", {"optimizer": "fedadam"}, "product", ["fedadam, which squares", "space to factors"]),
        ("ffa-lora", {}, "product", ["stages.shared is b", "set space to factors"]),
        ("fedsa-lora", {}, "product", ["stages.shared is a", "set space to factors"]),
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
    (fault,) = read_method(METHODS[name], changes, space).faults
    for part in parts:
        assert part in tell("stages", [fault])


def test_all_faults_of_the_stages_are_told_at_once():
    changes = {"order": ["align", "clip", "clip"], "merge": "residual", "trains": "a", "optimizer": "fedadam"}
    changes["guard"] = {"kind": "backtrack", "tries": 0, "first": 1}
    assert len(read_method(METHODS["fedbuff"], changes).faults) == 6
