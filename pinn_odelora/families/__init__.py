"""Families of solutions: one pretrained network, and its adapters over a range of parameters of the equation."""
