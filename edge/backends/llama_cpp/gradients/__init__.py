"""Gradients through llama.cpp's own forward graph, in numpy."""
