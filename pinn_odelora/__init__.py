"""Adapt a pretrained physics-informed network by training low-rank factors along an ODE."""

__version__ = "0.1.0"
