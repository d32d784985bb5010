"""What a train step will need of devices, attached or not."""
