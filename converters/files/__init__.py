"""Readers of tensor files that trust nothing in them."""
