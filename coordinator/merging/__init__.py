"""From the buffer to the next version."""
