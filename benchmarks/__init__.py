"""Measurements: what the matching engine finds on real and on mutated pairs, and how long it takes."""
