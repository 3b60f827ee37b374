"""What the coordinator remembers: the journal, the versions and their files."""
