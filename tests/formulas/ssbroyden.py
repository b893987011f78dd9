"""Self-scaled Broyden in plain NumPy, from the formulas of Urbán, Stefanou and Pons (2025, arXiv 2405.04230)."""

import numpy as np
from scipy.optimize import line_search


def new_inverse(H, s, y, g, alpha, initial=False):
    """H of the next iteration."""
    n = len(s)
    h = y @ H @ y / (y @ s)
    b = -alpha * (s @ g) / (y @ s)
    a = b * h - 1
    rho_minus = min(1, h * (1 - np.sqrt(a / (1 + a))))
    theta_minus, theta_plus = (rho_minus - 1) / a, 1 / rho_minus
    theta = max(theta_minus, min(theta_plus, (1 - b) / b))
    sigma = 1 + a * theta
    rho_plus, root = min(1, 1 / b), sigma ** (1 / (1 - n))
    tau = rho_plus * min(root, 1 / theta) if theta > 0 else min(rho_plus * root, sigma)
    if initial:
        tau = h / sigma
    phi = (1 - theta) / (1 + a * theta)
    v = s / (y @ s) - H @ y / (y @ H @ y)
    first = H - np.outer(H @ y, y @ H) / (y @ H @ y) + phi * (y @ H @ y) * np.outer(v, v)
    return first / tau + np.outer(s, s) / (y @ s)


def step(f, gradient, x, H, before, initial=False):
    """The next iterate and its H; ``before`` is the former value of f, ``initial`` whether H is scaled first."""
    g = gradient(x)
    p = -H @ g
    alpha = line_search(f, gradient, x, p, g, f(x), before, c1=1e-4, c2=0.9, maxiter=30)[0]
    s = alpha * p
    y = gradient(x + s) - g
    return x + s, new_inverse(H, s, y, g, alpha, initial)


def first(f, gradient, x):
    """H and the former value of f with which the first step begins."""
    return np.eye(len(x)), f(x) + np.linalg.norm(gradient(x)) / 2


def path(f, gradient, x, steps, initial_scale=False):
    """The iterates, x itself first."""
    points, (H, before) = [x], first(f, gradient, x)
    for k in range(steps):
        x, H, before = *step(f, gradient, x, H, before, initial_scale and k == 0), f(x)
        points.append(x)
    return points
