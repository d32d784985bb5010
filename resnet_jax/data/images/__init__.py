"""Decoding: Pillow everywhere, OpenCV and the JPEG's own bytes on the fast path of training."""
