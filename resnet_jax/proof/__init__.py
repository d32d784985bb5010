"""The proof that a network equals PyTorch's: live, or recorded to be checked elsewhere."""
