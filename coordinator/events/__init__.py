"""What happens at a coordinator, as records, and who is told."""
