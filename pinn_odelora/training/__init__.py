"""Training: Lightning modules, points, measurements and files of a run."""
