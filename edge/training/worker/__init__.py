"""The child process that trains, and its supervisor."""
