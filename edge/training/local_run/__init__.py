"""Training, scoring and asking on this machine, without a fleet: the core of commands and Python calls alike.

A run's checkpoints lie in `checkpoint/` below its output folder until the adapter is written.
"""
