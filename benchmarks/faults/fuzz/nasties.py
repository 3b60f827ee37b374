"""Values that decoders stumble over: too deep, too long, too large, of another type, no number, no text."""

from random import Random

DEEP, DIGITS, LONG = 5_000, 5_000, 20_000

_BRACKETS = b"[" * DEEP + b"]" * DEEP
_BRACES = b'{"a":' * DEEP + b"1" + b"}" * DEEP
BYTES: tuple[bytes, ...] = (
    b"",
    b"\0",
    b"\0" * 8,
    b"\xff" * 8,
    b"\xef\xbb\xbf",
    b"\xff\xfe",
    b"\xc3\x28",
    b"\xed\xa0\x80",  # half of a character, as UTF-8 would write it
    b"\xf4\x90\x80\x80",
    b"NaN",
    b"-Infinity",
    b"1e999",
    b"-0",
    b"0x10",
    b"\\ud800",
    b'"\\ud800"',
    b'"\\u0000"',
    b"\x1b[2J\x1b]0;x\x07",
    "\u202e\u2066\ufeff".encode(),
    b"1" * DIGITS,
    b"[" * DEEP,
    b"{" * DEEP,
    _BRACKETS,
    _BRACES,
    b"\n" * 100,
    b"a" * LONG,
    (1 << 63).to_bytes(8, "little"),
    (1 << 60).to_bytes(8, "little"),
    (10**18).to_bytes(8, "little"),
    ((1 << 64) - 1).to_bytes(8, "little"),
    (1 << 31).to_bytes(4, "little"),
)
JSON: tuple[str, ...] = (
    "null",
    "true",
    "false",
    "0",
    "-1",
    "1",
    "2",
    "0.5",
    "-0.0",
    "NaN",
    "Infinity",
    "-Infinity",
    "1e999",
    "1e308",
    "1e-320",
    str(2**31),
    str(2**53),
    str(2**63),
    str(2**64),
    str(-(2**63) - 1),
    str(10**18),
    "9" * 40,
    "1" * DIGITS,
    '""',
    '"a"',
    '"\\ud800"',
    '"\\u0000"',
    '"\\u202e\\u001b[2J"',
    '"[/red]"',
    '"../../etc/passwd"',
    '"' + "x" * LONG + '"',
    '"[a-z"',
    '"' + "(x+" * 30 + '"',
    "[]",
    "{}",
    "[[]]",
    "[{}]",
    '{"":""}',
    '{"a":{"a":{"a":1}}}',
    "[1,2,3]",
    '["a","b"]',
    "[null]",
    "[" + "0," * 3000 + "0]",
    "[" * 60 + "]" * 60,
    _BRACKETS.decode(),
    _BRACES.decode(),
)
TOML: tuple[str, ...] = (
    "nan",
    "inf",
    "-inf",
    "''",
    "'''\n'''",
    "1979-05-27",
    "07:32:00",
    "1979-05-27T07:32:00Z",
    "0xffffffffffffffffffff",
    "1_000",
    "{a = {a = {a = 1}}}",
    "[[1], ['a']]",
)


def any_bytes(random: Random) -> bytes:
    """Draws a run of bytes."""
    return random.choice(BYTES)


def any_json(random: Random) -> str:
    """Draws a value as JSON has it, or as Python writes it."""
    return random.choice(JSON)


def any_toml(random: Random) -> str:
    """Draws a value as TOML has it."""
    return random.choice(TOML) if random.random() < 0.4 else random.choice(JSON)
