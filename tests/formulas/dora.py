"""DoRA (Liu et al., 2024, arXiv 2402.09353): W = diag(μ/‖V‖) V, V = W0 + s B A, a magnitude μ for each output.

‖V‖, the norms of V's rows, is a constant in the gradient (the paper's section 4.3), so that the gradient of the pair is
LoRA's with diag(μ/‖V‖) G for G, and that of μ is ⟨G_i, V_i⟩/‖V_i‖. μ starts at ‖V‖. Read in PEFT, where the norms are
those of rows of an (out, in) weight as well. Adam moves A, B and μ.
"""

import numpy as np

from .adam import direction, vector_step


def magnitudes(problem, pairs):
    """Where μ starts."""
    return [np.linalg.norm(V, axis=1) for V in problem.weights(pairs)]


def gradients(problem, triples, c):
    V = problem.weights([(A, B) for A, B, _ in triples])
    norms = [np.linalg.norm(v, axis=1) for v in V]
    W = [(mu / norm)[:, None] * v for v, norm, (_, _, mu) in zip(V, norms, triples, strict=True)]
    G, g_c = problem.weight_gradients(W, c)
    return [
        (s * B.T @ H, s * H @ A.T, np.sum(g * v, axis=1) / norm)
        for g, v, norm, s, (A, B, mu) in zip(G, V, norms, problem.scales, triples, strict=True)
        for H in [(mu / norm)[:, None] * g]
    ], g_c


def steps(problem, start, lr, n, betas=(0.9, 0.999), eps=1e-8):
    """The triples (A, B, μ) and the vector after each of n steps."""
    (pairs, c), vector, path = start, {}, []
    triples = [(*pair, mu) for pair, mu in zip(pairs, magnitudes(problem, pairs), strict=True)]
    states = [{} for _ in pairs]
    for _ in range(n):
        all_g, g_c = gradients(problem, triples, c)
        triples = [
            tuple(x - lr * direction(g, state, key, betas, eps) for x, g, key in zip(y, g_y, "ABm", strict=True))
            for y, g_y, state in zip(triples, all_g, states, strict=True)
        ]
        c = vector_step(c, g_c, lr, vector, betas, eps)
        path.append((triples, c))
    return path
