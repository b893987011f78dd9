"""The parts of ``studies/feature_learning.py``."""
