"""Pickles to plain data and records of ours: the machine, its opcodes, and the names that a pickle may use."""
