"""The keys of a config: what their values may be, where they have an effect, how the command line sets them."""
