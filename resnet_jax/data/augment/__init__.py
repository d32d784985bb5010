"""What happens to a training image: one image in, one image out, all randomness from the generator passed."""
