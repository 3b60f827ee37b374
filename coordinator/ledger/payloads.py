"""Payloads of accepted updates that are in no version yet, by their update's id.

Small ones stand in the journal beside their updates: one write to the disk takes many of them. Large ones are
files, which SQLite would write twice.
"""
# ruff: noqa: D102 - `contract.Objects` says what the methods do

from collections.abc import Iterable

from coordinator.ledger.contract import Objects
from coordinator.ledger.contract import Payloads as Rows


class Payloads:
    """`Objects` of a journal and of a folder.

    Args:
        rows: The small ones, written down with their updates.
        files: The large ones.
    """

    def __init__(self, rows: Rows, files: Objects) -> None:
        self._rows = rows
        self._files = files

    def put(self, name: str, content: bytes) -> None:
        self._files.put(name, content)

    def get(self, name: str, start: int = 0, length: int = -1) -> bytes:
        content = self._rows.payload(name)
        if content is None:
            return self._files.get(name, start, length)
        return content[start : None if length < 0 else start + length]

    def size(self, name: str) -> int:
        content = self._rows.payload(name)
        return self._files.size(name) if content is None else len(content)

    def names(self) -> set[str]:
        return self._rows.payloads() | self._files.names()

    def remove(self, names: Iterable[str]) -> None:
        names = list(names)
        if names:
            self._rows.drop(names)
            self._files.remove(names)
