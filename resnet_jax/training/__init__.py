"""Training: plain numbers to an optimiser, a pure step, the wrapper around it, checkpoints, and the loop."""
