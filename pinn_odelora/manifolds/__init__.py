"""Where an integrator moves: spaces, points, tangent vectors and retractions."""
