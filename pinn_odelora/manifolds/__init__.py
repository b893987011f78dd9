"""The manifolds on which integrators move: points, tangent vectors and retractions."""
