"""A version as an adapter that other tools load, with the base's name and a card that tells its lineage.

The card counts devices and does not name them: it is made to be shared, and who they are stands in `history`.
"""

from collections.abc import Iterator
from pathlib import Path

from msgspec import structs

from converters.bases.name import name_base
from converters.bases.read import find_base, read_base
from converters.choices import Format
from converters.formats.about import NOTHING
from converters.formats.card import Lineage
from converters.formats.save import save_as
from coordinator.first_version import BASE_NAME
from coordinator.initial_adapter import describe
from coordinator.ledger.contract import Journal
from coordinator.ledger.records import Version
from coordinator.ledger.versions import VersionStore


def export_version(
    journal: Journal,
    versions: VersionStore,
    version: Version,
    out: Path,
    form: Format,
    base: Path | str | None = None,
) -> None:
    """Writes a version in the format `form`.

    Args:
        journal: Of the fleet.
        versions: Of the fleet.
        version: What to write.
        out: The folder, or the file in GGUF.
        form: The format.
        base: The base model to check against, a path or a hub name, which GGUF needs; without it the fleet's
            own name stands in the files.

    Raises:
        UnknownVersion: Its files are no longer kept.
        BaseModelError, AdapterError, UnsupportedAdapter: As `save_as`.
    """
    adapter = versions.whole(version)
    model = read_base(find_base(str(base))) if base else None
    name = name_base(model, str(base)) if model else journal.meta(BASE_NAME)
    origin = versions.version(0).origin
    about = structs.replace(origin.about if origin else NOTHING, base=name)
    save_as(form, adapter, out, model, about=about, lineage=lineage_of(journal, versions, version))


def lineage_of(journal: Journal, versions: VersionStore, version: Version) -> Lineage:
    """Tells where a version came from, for its card."""
    fleet = journal.meta("fleet") or ""
    return Lineage(f"Fleet {fleet}, version {version.version}", dict(_facts(journal, versions, version)))


def _facts(journal: Journal, versions: VersionStore, version: Version) -> Iterator[tuple[str, str]]:
    line = versions.lineage(version.version)
    reports = [one.report for one in versions.history() if one.version in line and one.report]
    shares = [share for report in reports for share in report.shares if share.weight]
    devices = {share.device for share in shares}
    yield "Fleet", journal.meta("fleet") or ""
    yield "Version", str(version.version)
    if version.parent is not None:
        yield "Made from", f"version {version.parent}"
    if origin := versions.version(0).origin:
        yield "Began with", describe(origin)
    told = f"{_counted(len(devices), 'device')}, {_counted(len(shares), 'update')}"
    yield "Contributors", told if shares else "none: nothing is trained"
    if reports:
        yield "Strategy", ", ".join(dict.fromkeys(report.strategy for report in reports))
    if version.loss is not None:
        yield "Loss on the coordinator's data", f"{version.loss:.4f}"
    yield "Base fingerprint", f"`{journal.meta('base')}`"


def _counted(number: int, what: str) -> str:
    return f"{number} {what}" if number == 1 else f"{number} {what}s"
