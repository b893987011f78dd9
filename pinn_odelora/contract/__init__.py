"""The contract of a problem: its reference solves it, its ansatz keeps its conditions, its parameters matter."""
