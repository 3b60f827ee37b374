"""A method as a person writes it: tables of numbers, names alone, and the flat form of release 0.1.

    order = [{ kind = "clip", ratio = 2.0 }, { kind = "cosine", floor = -0.05 }, { kind = "credit" }]
    guard = { kind = "backtrack", longest = 4.0, tries = 6 }

A record is a table with its `kind`; numbers that are left out are its own defaults. A name alone stands
for the strategy's own record of that kind, or else for the defaults. In release 0.1 all were names, and
every number stood beside them under a name of its own: `order = ["clip", "credit"]`, `clip_ratio = 2.0`. Such
a number goes into the record that it belongs to; where there is none it says nothing, as it did then.
"""

import json
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, Literal, NamedTuple, TypeVar

import msgspec
from msgspec import structs

from converters.choices import Trains
from converters.faults import Fault
from coordinator.strategies.kinds import FLAT, FRESHNESS, GUARDS, MERGES, OPTIMIZERS, STAGES, flat_numbers
from coordinator.strategies.merges.contract import Merge
from coordinator.strategies.merges.factors import Sum
from coordinator.strategies.merges.product import Product
from coordinator.strategies.method import Method, Shared, method_faults
from coordinator.strategies.outside import find_stage, outside_names
from coordinator.strategies.pipeline_state import Trigger
from coordinator.strategies.record import NotNegative, Record, kind_of
from coordinator.strategies.stages.contract import Stage
from edge.choices import Space
from edge.settings import type_faults

Shape = Literal["constant", "polynomial", "hinge", "exponential"]
R = TypeVar("R", bound=Record)
FIELDS: Mapping[str, Any] = {  # but for the flat numbers
    "order": tuple[Any, ...],
    "trigger": Trigger,
    "space": Space,
    "merge": Any,
    "optimizer": Any,
    "guard": Any,
    "shared": Shared,
    "pull": NotNegative,
    "trains": Trains,
    "keeps": Literal["none", "b"],
    "staleness": Shape,
}


class Stages:
    """A method in the flat form of release 0.1: `Stages(order=("clip", "freshness"), clip_ratio=2.0)`.

    Args:
        changes: What is other than in a method that does nothing but add increments up.
    """

    def __init__(self, **changes: Any) -> None:
        self.changes: Mapping[str, Any] = changes


class Read(NamedTuple):
    """What was made of a method as it was written."""

    method: Method
    faults: Sequence[Fault | str]  # where there are any, the method is none to use


def read_method(
    own: Method,
    changes: Mapping[str, Any],
    space: Space | None = None,
    find_stage: Callable[[str], type[Stage] | None] = find_stage,
) -> Read:
    """Reads what a person changes in a strategy's own method.

    Args:
        own: The strategy's.
        changes: Fields of `Method` as they are written, or of the flat form.
        space: What to add up; None leaves it to the method.
        find_stage: Finds a stage that is none of ours.
    """
    faults: list[Fault | str] = list(_shape_faults(changes))
    if faults:
        return Read(own, faults)
    reader = _Reader(own, changes, space or changes.get("space"), find_stage, faults)
    fields = {name: changes[name] for name in ("trigger", "pull") if name in changes}
    method = structs.replace(
        own,
        order=reader.order(),
        merge=reader.merge(),
        optimizer=reader.record("optimizer", OPTIMIZERS, own.optimizer) or own.optimizer,
        guard=None if changes.get("guard") == "none" else reader.record("guard", GUARDS, own.guard),
        shared=reader.shared(),
        **fields,
    )
    return Read(method, [*faults, *method_faults(method)])


def read_stages(stages: Stages) -> Read:
    """Reads a method in the flat form."""
    return read_method(Method(), stages.changes)


def method_fields(method: Method) -> dict[str, Any]:
    """Returns all fields of a method as `read_method` takes them."""
    return structs.asdict(method) | {"guard": method.guard or "none"}


def method_table(method: Method) -> dict[str, Any]:
    """Writes a method down, each record as a table."""
    return {
        "order": [stage.table() for stage in method.order],
        "trigger": method.trigger,
        "merge": method.merge.table(),
        "optimizer": method.optimizer.table(),
        "guard": method.guard.table() if method.guard else "none",
        "shared": method.shared,
        "pull": method.pull,
    }


def method_lines(table: Mapping[str, Any]) -> str:
    """Writes fields of `method_table` as the lines of a TOML table, each record within its line."""
    lines = []
    for name, value in table.items():
        if isinstance(value, list):
            lines += [f"{name} = [", *(f"    {_inline(record)}," for record in value), "]"]
        else:
            lines.append(f"{name} = {_inline(value)}")
    return "".join(f"{line}\n" for line in lines)


def written_changes(own: Method, changes: Mapping[str, Any], space: Space | None = None) -> dict[str, Any]:
    """Writes down the fields that `changes`, of any form and without fault, name or change."""
    if any(isinstance(one, Record) for one in (*changes.get("order", ()), *changes.values())):
        return dict(changes)  # of Python, whose stages may have no name
    before, after = (read_method(own, given, space).method for given in ({}, changes))
    table = method_table(after)
    return {
        name: table[name]
        for name in table
        if name in changes or getattr(before, name) != getattr(after, name)
    }


def _inline(value: Any) -> str:
    if isinstance(value, Mapping):
        return f"{{ {', '.join(f'{name} = {_inline(inner)}' for name, inner in value.items())} }}"
    return json.dumps(value)  # of strings and numbers TOML's own


class _Reader(NamedTuple):
    own: Method
    changes: Mapping[str, Any]
    space: Space | None
    find_stage: Callable[[str], type[Stage] | None]
    faults: list[Fault | str]

    def order(self) -> tuple[Stage, ...]:
        """Reads the stages."""
        order: Sequence[Any] = self.changes.get("order", self.own.kinds())
        named = [self._stage_kind(one, order) if isinstance(one, str) else one for one in order]
        records = [self._record("order", one, STAGES, self.own.order) for one in named if one]
        return tuple(record for record in records if record)

    def merge(self) -> Merge:
        """Reads the merge, and takes the one of two sums that the space asks for."""
        written, space = self.changes.get("merge"), self.space
        if written == "sum" or (written is None and self.own.merge.kind in ("sum", "product")):
            written = "product" if (space or self.own.space) == "product" else "sum"
        merge = self._record("merge", written or self.own.merge.kind, MERGES, [self.own.merge])
        if merge is None or space is None or merge.space == space:
            return merge or self.own.merge
        if isinstance(merge, Product):
            return Sum()
        if isinstance(merge, Sum):
            return Product()
        self.faults.append(
            f"stages.merge {merge.kind} merges factors, and the space is product: "
            "set space to factors, or stages.merge to sum"
        )
        return merge

    def record(self, field: str, kinds: Mapping[str, type[R]], own: R | None) -> R | None:
        """Reads an optimiser or a guard."""
        written = self.changes.get(field, own.kind if own else None)
        return None if written is None else self._record(field, written, kinds, [own] if own else [])

    def shared(self) -> Shared:
        """Reads which factors are merged; in the flat form, which are trained and which are kept."""
        if "trains" not in self.changes and "keeps" not in self.changes:
            shared: Shared = self.changes.get("shared", self.own.shared)
            return shared
        trains = self.changes.get("trains", self.own.trains)
        keeps = self.changes.get("keeps", self.own.keeps)
        if trains == "a":
            self.faults.append(
                "stages.trains is a, and B is zero at the start, so that no A would ever change anything: "
                "set it to both or b"
            )
        if (trains, keeps) == ("b", "b"):
            self.faults.append(
                "stages.trains is b and stages.keeps b, so that nothing is left to merge: "
                "set one of them only"
            )
        return "b" if trains == "b" else "a" if keeps == "b" else "both"

    def _stage_kind(self, name: str, order: Sequence[Any]) -> str:
        """Returns the kind that a name of the flat form has now; empty where nothing is left to do."""
        shape = self.changes.get("staleness")
        fresh = {stage.kind for stage in self.own.order if isinstance(stage, tuple(FRESHNESS.values()))}
        if name in ("group", "freshness") or (shape and name in fresh):
            if name == "group" or shape == "constant":
                return ""
            return kind_of(FRESHNESS[shape]) if shape else next(iter(fresh), name)
        if name == "inverse-norm" and "centre-literal" in order:
            return "inverse-norm-literal"
        return name

    def _record(self, field: str, written: Any, kinds: Mapping[str, type[R]], own: Sequence[R]) -> R | None:
        """Reads one record, or tells why it is none."""
        if isinstance(written, Record):
            return written  # type: ignore[return-value]
        is_name = isinstance(written, str)
        table = dict(written) if isinstance(written, Mapping) else {}
        kind = table.pop("kind", None) if not is_name and table else written
        found: type[Any] | None = kinds.get(kind) if isinstance(kind, str) else None
        if found is None and isinstance(kind, str) and field == "order":
            found = self.find_stage(kind)
        if found is None:
            none = ["none"] if field == "guard" else []
            self.faults.append(_unknown_kind(field, kind, [*none, *kinds]))
            return None
        if is_name:
            like = next((structs.asdict(one) for one in own if type(one) is found), {})
            table = like | dict(flat_numbers(self.changes).get(found, {}))
        faults = [*type_faults(table, found), *_infinite(table)]
        self.faults.extend(_under(f"{kind}.", fault) for fault in faults)
        made: R | None = None if faults else msgspec.convert(table, found)
        return made


def _shape_faults(changes: Mapping[str, Any]) -> Iterator[Fault | str]:
    """Tells what is misspelt or mistyped, without looking into a record."""
    flat = {
        name: {one.name: one.type for one in structs.fields(records[0])}[field]
        for name, (field, records) in FLAT.items()
    }
    fields = {**FIELDS, **flat}
    form = msgspec.defstruct("Form", [(name, kind, None) for name, kind in fields.items()])
    yield from (_under("", fault) for fault in type_faults(changes, form))
    yield from (_under("", fault) for fault in _infinite(changes))


def _infinite(numbers: Mapping[str, Any]) -> Iterator[Fault]:
    for name, value in numbers.items():
        if isinstance(value, float) and math.isinf(value):
            yield Fault(f"{name} is {value}, expected a finite number")


def _under(where: str, fault: Fault) -> Fault:
    """Tells a fault with the place of its table before it."""
    brief = fault.brief and f"stages.{where}{fault.brief}"
    return fault._replace(text=f"stages.{where}{fault.text}", brief=brief)


def _unknown_kind(field: str, kind: object, known: Iterable[str]) -> str:
    if field == "order":
        others = outside_names()
        more = f", or of {', '.join(others)}" if others else ""
        return f"stages.order has {kind!r}, expected some of {', '.join(known)}{more}"
    return f"stages.{field} is {kind!r}, expected one of {', '.join(known)}"
