"""Run a formula for pairs on the problem: one evaluation a step, all pairs from the same gradients, the vector by Adam.

A formula that needs all pairs at once, as a global gradient norm, has ``shared(pairs, gradients, scales, **settings)``,
whose dictionary goes to each ``step``. ``vector_step`` in a file replaces Adam (Kingma and Ba, 2015, arXiv 1412.6980).
"""

from . import adam


def steps(formula, problem, start, lr, n, **settings):
    """The points, [(A, B), …] and the vector, after each of n steps."""
    (pairs, c), states, vector, path = start, [{} for _ in start[0]], {}, []
    for _ in range(n):
        gradients, g_c = problem.gradients(pairs, c)
        shared = formula.shared(pairs, gradients, **settings) if hasattr(formula, "shared") else {}
        pairs = [
            formula.step(A, B, g_A, g_B, s, lr, state, **settings, **shared)
            for (A, B), (g_A, g_B), s, state in zip(pairs, gradients, problem.scales, states, strict=True)
        ]
        c = getattr(formula, "vector_step", adam.vector_step)(c, g_c, lr, vector, **settings)
        path.append((pairs, c))
    return path
