"""Base models on disk: their linear layers, their fingerprint, and what their architecture is called."""
