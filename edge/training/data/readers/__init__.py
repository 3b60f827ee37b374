"""Readers of data files, one for each kind; `rows.py` finds out which kind a file is."""
