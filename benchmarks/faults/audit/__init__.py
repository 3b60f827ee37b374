"""After a run: journal, versions, spools and what was told are replayed, and held against each other."""
