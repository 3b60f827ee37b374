"""Prints the resident megabytes of a process that has imported what a client imports, and nothing else.

Run as: python -m benchmarks.speed.client_memory, by `upload.py`
"""

import edge.device.client
import edge.protocol.codec
import edge.protocol.delta
import edge.protocol.signing
import edge.storage.parts
import edge.transport.mqtt.transport  # noqa: F401
from benchmarks.memory import memory_bytes

if __name__ == "__main__":
    print(memory_bytes(peak=False) / 1e6)
