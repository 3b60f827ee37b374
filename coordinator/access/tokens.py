"""Tokens as they are made at the coordinator's state folder: no coordinator need run, none is asked."""

import re
from pathlib import Path

from coordinator.ledger.contract import Facts
from edge.errors import ConfigError, StateError
from edge.protocol.enrolment import MAX_USES, Token, draw_token, write_token
from edge.protocol.messages import is_id
from edge.storage.identity import FILE, read_identity

_UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86400}
MAX_S = 366 * 86400


def new_token(
    folder: Path, facts: Facts, *, uses: int, expires: str, device_id: str | None, at: float
) -> Token:
    """Makes a token with the coordinator's key.

    Args:
        folder: The coordinator's state folder.
        facts: Its journal's.
        uses: How many devices it lets in.
        expires: How long it holds: `30m`, `24h`, `7d`.
        device_id: The only device that it is for.
        at: Unix time in seconds.

    Raises:
        ConfigError: Such a token makes no sense.
        StateError: The folder holds no key.
    """
    faults = []
    seconds = read_duration(expires)
    if seconds is None or not 0 < seconds <= MAX_S:
        faults.append(f"--expires is {expires!r}, expected a number and s, m, h or d, at most 366d")
    if not 1 <= uses <= MAX_USES:
        faults.append(f"--uses is {uses}, expected 1 to {MAX_USES}")
    if device_id is not None and not is_id(device_id):
        faults.append(f"--for is {device_id!r}, expected 1 to 64 of a-z, 0-9 and -")
    if device_id is not None and uses != 1:
        faults.append("--for names one device, and --uses lets in several")
    if faults:
        raise ConfigError.of("token", faults)
    if not (folder / FILE).exists():
        raise StateError(f"{folder}: holds no {FILE}; `tunefleet serve` makes it at its first start")
    key = read_identity(folder, "restore it: devices have pinned it")
    return draw_token(key, facts.meta("fleet") or "", int(at + (seconds or 0)), uses, device_id)


def token_report(token: Token) -> dict[str, object]:
    """Returns what `tunefleet device token --json` prints."""
    grant = token.grant
    return {
        "token": write_token(token),
        "fleet": grant.fleet,
        "device": grant.device_id,
        "uses": grant.uses,
        "expires": grant.expires,
        "nonce": grant.nonce,
        "coordinator_key": grant.coordinator,
    }


def read_duration(text: str) -> int | None:
    """Returns the seconds of `90s`, `30m`, `24h` or `7d`; None where it is none of these."""
    found = re.fullmatch(r"([0-9]{1,9})([smhd])", text.strip())
    return int(found[1]) * _UNITS[found[2]] if found else None
