"""Placeholder."""


def ensure_tested() -> None: ...
