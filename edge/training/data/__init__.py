"""Files of training data, read a row at a time: `rows.py` reads, `forms.py` recognises, `turns.py` marks."""
