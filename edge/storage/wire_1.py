"""What a device of wire version 1 has left in its state folder, as the present version writes it.

Headers and manifests of version 1 name no Merkle root. It is made of the files that lie beside them: an
update in the spool keeps all that its device has signed, and gets a root; a task goes on where its version is
here.
"""

import json
from pathlib import Path
from typing import Any

from msgspec import Raw, Struct

from converters.files.text import decode_object, decode_record
from edge.errors import ProtocolError
from edge.protocol.messages import ChunkBytes, UpdateHeader, decode_message, encode_message
from edge.storage.disk import write_file
from edge.storage.parts import read_tree


class SignedHeader(Struct):
    """A header in the spool, as it was sent."""

    body: Raw


class _Chunked(Struct):
    chunk_bytes: ChunkBytes


def _told(why: str) -> ProtocolError:
    return ProtocolError(f"header of wire version 1: {why}")


def renew_header(path: Path, payload: Path) -> bytes:
    """Replaces a signed header of version 1 by the body of one with a root, and returns it.

    Args:
        path: The header's file.
        payload: The encoded delta.

    Raises:
        ProtocolError: It is no such header.
        OSError: The payload cannot be read.
        DiskFull: It is still as it was.
    """
    signed = decode_message(path.read_bytes(), SignedHeader)
    fields = decode_object(bytes(signed.body), _told)
    chunk_bytes = decode_record(bytes(signed.body), _Chunked, _told).chunk_bytes
    fields["root"] = read_tree(payload, payload.stat().st_size, chunk_bytes).root
    body = encode_message(decode_message(json.dumps(fields).encode(), UpdateHeader))
    write_file(path, body)
    return body


def renew_manifest(manifest: dict[str, Any], file: Path) -> dict[str, Any] | None:
    """Returns a manifest with a root; None where its version is not here, and is to be offered anew.

    Args:
        manifest: As JSON has it.
        file: Of the version's adapter.
    """
    if "root" in manifest:
        return manifest
    if not file.is_file():
        return None
    root = read_tree(file, file.stat().st_size, int(manifest["chunk_bytes"])).root
    kept = {name: value for name, value in manifest.items() if name != "sketch"}  # it was of use before
    return kept | {"root": root}
