"""The protocol as a model: the wire's own state machines, against a network that does anything."""
