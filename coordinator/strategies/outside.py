"""Strategies and stages from outside the repository: entry points of the group `tunefleet.strategies`.

A package that is installed beside tunefleet names them; a configuration only chooses among the names. A
module of theirs is imported when its name is asked for, and never to print a list or a help text.
"""

from importlib.metadata import EntryPoint, entry_points

from coordinator.errors import CoordinatorError
from coordinator.strategies.stages.contract import Stage

GROUP = "tunefleet.strategies"


def outside_names() -> list[str]:
    """Returns the names that installed packages bring along."""
    return sorted(entry_points(group=GROUP).names)


def load_outside(name: str) -> object | None:
    """Imports what an installed package calls `name`; None where no package does.

    Raises:
        CoordinatorError: It cannot be imported, or several packages use the name.
    """
    found = list(entry_points(group=GROUP, name=name))
    if not found:
        return None
    if len(found) > 1:
        packages = ", ".join(map(_package, found))
        raise CoordinatorError(f"{name}: {packages} bring a strategy or stage of this name; keep one of them")
    try:
        return found[0].load()  # type: ignore[no-any-return]
    except (ImportError, AttributeError) as error:
        where = f"{_package(found[0])}, {found[0].value}"
        raise CoordinatorError(f"{name}: cannot be imported from {where}: {error}") from error


def find_stage(kind: str) -> type[Stage] | None:
    """Finds a stage that an installed package brings along.

    Raises:
        CoordinatorError: It cannot be imported, or calls itself something else.
    """
    found = load_outside(kind)
    if not (isinstance(found, type) and issubclass(found, Stage)):
        return None
    if found.__struct_config__.tag != kind:
        raise CoordinatorError(
            f"{kind}: {found.__qualname__} has the tag {found.__struct_config__.tag!r}, expected {kind!r}"
        )
    return found


def _package(point: EntryPoint) -> str:
    return point.dist.name if point.dist else "a package"
