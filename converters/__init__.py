"""Adapters as files and as algebra: numpy in, numpy out; no network and no training."""
