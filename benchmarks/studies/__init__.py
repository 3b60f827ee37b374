"""Single questions: the real run with its accidents, a mixed fleet, the remainder, the alignment's fits."""
