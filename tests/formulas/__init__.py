"""Published updates of LoRA pairs in plain NumPy, written from papers and their code, not from this package's.

A file is a method. Where the state is a pair, it has

    step(A, B, g_A, g_B, s, lr, state, **settings) -> (A, B)

with A (r, n), B (m, r), gradients of the loss in W = W0 + s·B A, and a dictionary that it fills; ``driver.steps`` runs
it on several pairs and a vector. A file with other variables has ``steps`` of its own. Each docstring states what was
read in the authors' code or a kept package, what comes from a second-hand formula, and what is our reading.
"""
