"""The crossings that are proved."""

from tests.recipes import fused_cases, image_cases, llama_cases

CASES = [*llama_cases.CASES, *fused_cases.CASES, *image_cases.CASES]
