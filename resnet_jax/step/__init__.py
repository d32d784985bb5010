"""The step and all that it is made of; reaches the network through `state.apply_fn` alone."""
