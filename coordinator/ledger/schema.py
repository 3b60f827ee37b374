"""The tables of the journal, and what each older schema lacks.

Columns and tables are added and never changed, so that a folder of any release before opens.
"""

from coordinator.ledger.access import ACCESS_TABLES

SCHEMA = 4  # one number for each release that added something

# Version 1; what is made anew takes the same way to the present one as what is old.
_TABLES = """
CREATE TABLE meta (key TEXT PRIMARY KEY, value TEXT NOT NULL);
CREATE TABLE devices (
    device TEXT PRIMARY KEY, key TEXT NOT NULL, first_seen REAL NOT NULL, last_seen REAL NOT NULL,
    online INTEGER NOT NULL DEFAULT 0, epoch INTEGER NOT NULL DEFAULT 0, hello TEXT, telemetry TEXT
);
CREATE TABLE updates (
    seq INTEGER PRIMARY KEY, id TEXT NOT NULL UNIQUE, device TEXT NOT NULL, tier TEXT NOT NULL,
    base_version INTEGER NOT NULL, attempt INTEGER NOT NULL, sha256 TEXT NOT NULL, encoding TEXT NOT NULL,
    size_bytes INTEGER NOT NULL, num_examples INTEGER NOT NULL, num_tokens INTEGER NOT NULL,
    num_steps INTEGER NOT NULL, seconds REAL NOT NULL, loss_before REAL, loss_after REAL,
    received_at REAL NOT NULL, status TEXT NOT NULL, reason TEXT, detail TEXT NOT NULL DEFAULT '',
    merged_into INTEGER, staleness INTEGER, weight REAL
);
CREATE INDEX updates_waiting ON updates (status, merged_into);
CREATE TABLE refusals (
    seq INTEGER PRIMARY KEY, at REAL NOT NULL, device TEXT NOT NULL, id TEXT NOT NULL, reason TEXT NOT NULL,
    detail TEXT NOT NULL
);
CREATE TABLE versions (
    version INTEGER PRIMARY KEY, parent INTEGER, depth INTEGER NOT NULL, created_at REAL NOT NULL,
    master TEXT NOT NULL, remainder TEXT, tiers TEXT NOT NULL, report TEXT, kept INTEGER NOT NULL DEFAULT 1,
    loss REAL, exact REAL
);
"""
# What a journal of version 1 lacks; the accounts begin with what was merged of each device.
_FROM_1 = """
ALTER TABLE devices ADD COLUMN held TEXT NOT NULL DEFAULT '[]';
ALTER TABLE versions ADD COLUMN carried TEXT NOT NULL DEFAULT '{}';
CREATE TABLE accounts (
    device TEXT PRIMARY KEY, uploads INTEGER NOT NULL, weight REAL NOT NULL, credit REAL NOT NULL,
    cosine REAL NOT NULL, num_cosines INTEGER NOT NULL
);
INSERT INTO accounts
    SELECT device, count(*), total(weight), 0.0, 0.0, 0 FROM updates
    WHERE merged_into IS NOT NULL GROUP BY device;
"""
# What one of version 2 lacks: the adapter that version 0 was made of, and devices that follow another state.
_FROM_2 = "ALTER TABLE versions ADD COLUMN origin TEXT; ALTER TABLE devices ADD COLUMN astray REAL;"
# What one of version 3 lacks: who was let in, banned or has another key now, and the tokens that were used;
# how far each device's signatures have come; what later updates are measured by, one update for each attempt,
# and rejections that were counted only; whether a payload is sealed; payloads of small updates, which cost no
# file and no write of their own.
_FROM_3 = f"""
{ACCESS_TABLES}
ALTER TABLE updates ADD COLUMN is_sealed INTEGER NOT NULL DEFAULT 0;
ALTER TABLE devices ADD COLUMN stamps TEXT NOT NULL DEFAULT '{{}}';
ALTER TABLE updates ADD COLUMN norm REAL;
ALTER TABLE devices ADD COLUMN num_unlisted INTEGER NOT NULL DEFAULT 0;
CREATE INDEX updates_attempts ON updates (device, base_version, attempt);
CREATE TABLE payloads (id TEXT PRIMARY KEY, content BLOB NOT NULL);
"""
MIGRATIONS = {1: _FROM_1, 2: _FROM_2, 3: _FROM_3}


def tables(number: int = SCHEMA) -> str:
    """Returns the statements that make an empty journal of a schema."""
    return _TABLES + "".join(MIGRATIONS[older] for older in range(1, number))


NEW = f"BEGIN; {tables()} PRAGMA user_version = {SCHEMA}; COMMIT;"
