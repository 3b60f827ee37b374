"""Configurations of brokers, a file for each kind: pure functions from a fleet to the text of its files."""
