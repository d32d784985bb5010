"""Anybody's weights: files to arrays, PyTorch's names to Flax variables and back."""
