"""The fleet of the demo: how it is run, what its devices do, and what its coordinator's journal tells."""
