"""What can be opened as a data set. Each source knows `base`, which knows none of them."""
