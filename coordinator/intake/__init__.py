"""What devices send: checked, received on disk, and counted once."""
