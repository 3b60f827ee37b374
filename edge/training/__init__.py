"""Training on this device; nothing in here knows a network."""
