"""Static compatibility checker and auto-repair engine for PyTorch checkpoints."""
