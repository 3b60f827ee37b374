"""Seconds and bytes: training, merges, uploads and the alignment, beside what people would use instead."""
