"""Differential privacy as arithmetic: terms, clipping, noise, and what it costs. No files, no clock."""
