"""Every decoder of the project under inputs that nobody means well with."""
