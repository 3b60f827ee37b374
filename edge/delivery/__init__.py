"""Transfers in chunks, as coroutines over a transport."""
