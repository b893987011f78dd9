"""Which iterate a run returns, and which rank its factors have."""
