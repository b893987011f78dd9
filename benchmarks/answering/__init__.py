"""What ``family.py`` measures: families of solutions, other ways to the same answers (``rivals``), and the verdict."""
