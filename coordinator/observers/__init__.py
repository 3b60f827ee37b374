"""What the coordinator tells about itself, and who shows it."""
