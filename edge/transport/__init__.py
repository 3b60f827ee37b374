"""Bytes between device and coordinator: in memory, or over MQTT."""
