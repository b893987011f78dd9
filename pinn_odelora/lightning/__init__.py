"""The loop as a LightningModule, its callbacks, and tracking by Weights & Biases."""
