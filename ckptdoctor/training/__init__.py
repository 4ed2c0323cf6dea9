"""Training statuses: resuming them, checking their optimizer state, saving them well, cleaning them up."""
