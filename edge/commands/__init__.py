"""The commands of a device; heavy imports happen when a command runs."""
