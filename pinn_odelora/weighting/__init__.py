"""Weights of the terms of the loss that follow the training."""
