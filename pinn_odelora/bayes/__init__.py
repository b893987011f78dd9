"""What measurements say about the parameters of a family: interpolated answers, their density, samples of it."""
