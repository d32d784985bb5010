"""What an evaluation came to, class by class and image by image."""
