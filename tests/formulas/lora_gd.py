"""LoRA (Hu et al., 2021, arXiv 2106.09685) by gradient descent: A ← A − η g_A, B ← B − η g_B, the vector likewise."""


def step(A, B, g_A, g_B, s, lr, state):
    return A - lr * g_A, B - lr * g_B


def vector_step(x, g, lr, state, **_):
    return x - lr * g
