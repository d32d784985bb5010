"""Weights: files to arrays, PyTorch's names to Flax variables and back, and the proof that nothing changed."""
