"""What a run leaves: folder, history, summary, comparison, figures, and loading it again."""
