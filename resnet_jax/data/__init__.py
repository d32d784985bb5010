"""From a data set's name to batches: `datasets` opens it, `images` decodes, `transforms` changes, `pipeline` batches.

Images stay uint8 in NHWC order all the way; normalising them is the training step's business. Nothing is imported
here, so that `resnet_jax.data.transforms` needs NumPy and Pillow alone. TensorFlow and PyTorch are never imported.
"""
