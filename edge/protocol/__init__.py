"""The contract between device and coordinator, wire version 1: no I/O, no clock, no ML library."""
