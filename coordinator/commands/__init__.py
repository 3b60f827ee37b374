"""The commands of a coordinator; heavy imports happen when a command runs."""
