"""A file of many devices: a line each, id and public key, as `tunefleet enroll` prints them.

# the ground floor
lamp   3fa94c0d12ab34cd…   (64 hex digits)
kettle 91b2…               # anything may stand behind a #
"""

from collections.abc import Iterator, Mapping
from pathlib import Path

import msgspec

from converters.files.content import reading
from converters.files.text import decode_text
from edge.errors import ConfigError
from edge.protocol.messages import Id, Sha256

MAX_BYTES = 4 << 20


def read_device_list(path: Path) -> dict[str, str]:
    """Returns the devices in a file, each with its key.

    Raises:
        ConfigError: It cannot be read, or naming every line at fault.
    """
    with reading(path, lambda why: ConfigError(f"{path}: {why}")):
        size = path.stat().st_size
        if size > MAX_BYTES:
            raise ConfigError(f"{path}: is {size} bytes, expected at most {MAX_BYTES}")
        content = path.read_bytes()
    text = decode_text(
        content, lambda why: ConfigError(f"{path}: {why}; expected lines of a device's id and key")
    )
    lines = text.splitlines()
    found: dict[str, str] = {}
    faults = []
    for number, line in enumerate(lines, start=1):
        words = line.partition("#")[0].split()
        if words and (fault := _fault(words, found)):
            faults.append(f"line {number}: {fault}")
        elif words:
            found[words[0]] = words[1]
    if faults:
        raise ConfigError.of(str(path), faults)
    return found


class DeviceList:
    """The settings' own devices, and those of a file that may change.

    Args:
        listed: Device to public key.
        path: The file; None: there is none.
    """

    def __init__(self, listed: Mapping[str, str], path: Path | None) -> None:
        self._listed = listed
        self._path = path

    def __call__(self) -> dict[str, str]:
        """Returns all devices, each with its key; the settings' own go before the file's.

        Raises:
            ConfigError: As `read_device_list`.
        """
        return (read_device_list(self._path) if self._path else {}) | dict(self._listed)

    def state(self) -> object:
        """Returns what changes when the file does."""
        try:
            found = self._path.stat() if self._path else None
        except OSError:
            return None
        return found and (found.st_mtime_ns, found.st_size, found.st_ino)


def device_faults(device: str, key: str) -> Iterator[str]:
    """Finds what is wrong with a device's id or its key."""
    for what, word, kind in (("id", device, Id), ("key", key, Sha256)):
        try:
            msgspec.convert(word, kind)
        except msgspec.ValidationError:
            expected = "64 hex digits" if what == "key" else "1 to 64 of a-z, 0-9 and -"
            yield f"{what} is {word[:80]!r}, expected {expected}"


def _fault(words: list[str], known: Mapping[str, str]) -> str | None:
    if len(words) != 2:
        return f"has {len(words)} words, expected a device's id and its key"
    if words[0] in known:
        return f"{words[0]} is there twice"
    return next(device_faults(*words), None)
