"""Whether a quantised model is the fleet's: a sample of the original, held against the copy."""
