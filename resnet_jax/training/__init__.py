"""The life of a run: a config, built; the loop over its steps; checkpoints, hosts, and what it starts from."""
