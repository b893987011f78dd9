"""The neural tangent kernel of a residual system and what follows from it."""
