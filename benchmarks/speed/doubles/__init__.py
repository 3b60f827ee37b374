"""Devices without a model: they speak the real wire through a real broker, hundreds in one process."""
