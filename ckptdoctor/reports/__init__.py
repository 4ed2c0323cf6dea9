"""Reports render what was found; they compute nothing of their own."""
