"""One equation per file. A new file here and a one-line YAML in configs/problem/ is a new problem."""
