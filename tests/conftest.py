"""What every test shares: signals, one thread for torch, and Hypothesis without a stopwatch."""

import os
import signal

# Tests run several at a time on few cores; torch's own threads would fight over them.
os.environ.setdefault("OMP_NUM_THREADS", "1")

from hypothesis import HealthCheck, settings

# Started in the background or under nohup, we inherit that these are ignored, and so would the programs
# that tests start and interrupt.
signal.signal(signal.SIGINT, signal.default_int_handler)
signal.signal(signal.SIGHUP, signal.SIG_DFL)

# A slow machine is not a wrong program; in CI the same examples run each time.
settings.register_profile("ckptdoctor", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.register_profile("ci", settings.get_profile("ckptdoctor"), derandomize=True)
settings.load_profile("ci" if os.environ.get("CI") else "ckptdoctor")
