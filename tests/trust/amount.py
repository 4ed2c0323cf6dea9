"""How many examples: a few in every test run, the same ones in CI, and many under ``make fuzz``."""

import os

from hypothesis import HealthCheck, Phase, settings

# `make fuzz` sets it: how many times as many examples as usual, drawn anew each time.
TIMES = int(os.environ.get("FUZZ", "0"))


def examples(count: int) -> settings:
    """Settings for one property; not random but in ``make fuzz``, so that a run never fails by chance."""
    return settings(
        max_examples=count * (TIMES or 1),
        derandomize=not TIMES,
        deadline=None,
        suppress_health_check=list(HealthCheck),
        phases=(Phase.explicit, Phase.reuse, Phase.generate, Phase.shrink)
        if TIMES
        else (Phase.explicit, Phase.generate, Phase.shrink),
    )
