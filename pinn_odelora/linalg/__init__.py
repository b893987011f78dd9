"""Damped least squares: Gram matrices, factorisations, conjugate gradients, and the plan that chooses between them."""
