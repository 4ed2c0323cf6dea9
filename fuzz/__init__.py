"""Coverage-guided fuzzing of the readers; see ``make fuzz``."""
