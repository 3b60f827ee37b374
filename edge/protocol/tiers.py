"""Rank tiers by their names on the wire: `r8` are the adapters of rank 8."""

import re

from edge.errors import ProtocolError

_FORM = re.compile(r"r([1-9][0-9]{0,8})")


def tier_name(rank: int) -> str:
    """Returns the name of the tier of `rank`."""
    return f"r{rank}"


def tier_rank(name: str) -> int:
    """Returns the rank of the tier called `name`.

    Raises:
        ProtocolError: No tier is called so.
    """
    found = _FORM.fullmatch(name)
    if found is None:
        raise ProtocolError(f"tier {name[:20]!r}, expected r and a rank, as r8")
    return int(found[1])
