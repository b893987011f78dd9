"""Runs on one page: a table with filters, curves, the stability picture, and solutions side by side."""
