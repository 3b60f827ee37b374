"""The strategies, one file for each, as its paper writes it."""
