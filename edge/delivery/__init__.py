"""Transfers in chunks over a transport: coroutines around `edge.protocol.sending` and `receiving`."""
