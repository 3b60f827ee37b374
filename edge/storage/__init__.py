"""What lies on disk, whatever is killed in between."""
