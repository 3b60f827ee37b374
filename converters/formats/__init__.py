"""One file for each adapter format, and what they have in common."""
