"""Networks, losses, data sets, augmentation and the training loop."""
