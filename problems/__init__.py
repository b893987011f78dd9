"""The problems, one equation per file. A new one is a file here and one line of YAML in configs/problem/."""
