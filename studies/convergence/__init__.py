"""The parts of ``studies/linear_convergence.py``."""
