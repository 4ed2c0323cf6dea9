"""Speed and memory beside the tools that people use: ``python -m benchmarks.speed [--quick]``.

Every method of a work runs in a fresh process, in random order within each round, after one round that is
not counted. Ratios are medians over rounds of a method's time by its peer's in the same round.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[1]


@dataclass(frozen=True)
class Work:
    """Methods that do the same; the first is the peer. A method with a space in it is a whole process."""

    title: str
    methods: Sequence[tuple[str, str]]  # words, function of speed_methods or command line
    goal: str = ""


CKD = "-m ckptdoctor"
TORCH_LOAD = "-c 'import torch, sys; torch.load(sys.argv[1], mmap=True, weights_only=True)'"

# `repair` always flushes what it writes; only where it is compared with a plain `cp` that is left out.
UNSYNCED = "os.fsync left out here"

WORKS = (
    Work(
        "specs of many keys",
        [
            ("torch.load(mmap)", "specs_torch"),
            ("inspect()", "specs_ours"),
            ("inspect(), every spec made", "specs_ours_made"),
        ],
        "0.04",
    ),
    Work(
        "inspect a usual .pth, whole process",
        [
            ("torch.load(mmap)", f"{TORCH_LOAD} usual.pth"),
            ("inspect", f"{CKD} inspect usual.pth --exit-zero"),
            ("inspect --format json", f"{CKD} inspect usual.pth --exit-zero --format json"),
        ],
        "0.1, json 0.05",
    ),
    Work("legacy file", [("torch.load", "legacy_torch"), ("inspect()", "legacy_ours")], "milliseconds"),
    Work(
        "diagnose, whole process",
        [
            ("import torch", "-c 'import torch'"),
            ("with a model", f"{CKD} diagnose model.py:usual usual.pth --exit-zero"),
            ("with a reference, 1,000 keys", f"{CKD} diagnose thousand_target.pth thousand.pth --exit-zero"),
        ],
        "1.25; reference 0.25 s",
    ),
    Work("diagnose(tree, file) of many keys", [("diagnose()", "align_ours")], "1 s for 10,000"),
    Work(
        "diagnose, both sides trees",
        [
            ("10,000 keys under `module.`", "trees_10k_ours"),
            ("10,000 keys, blocks renamed", "trees_10k_renamed_ours"),
            ("1,000,000 (quick: 100,000) under `module.`", "trees_most_ours"),
            ("the same, blocks renamed", "trees_most_renamed_ours"),
        ],
        "1 s for 10,000, linear",
    ),
    Work("experts, renamed", [("diagnose()", "experts_ours")], "seconds"),
    Work(
        "auto_load, real model",
        [
            ("mmap + load_state_dict", "load_torch"),
            ("verify=False", "load_ours_unverified"),
            ("auto_load", "load_ours"),
            ("auto_load .safetensors", "load_ours_safetensors"),
        ],
        "1.15, verified 2.2",
    ),
    Work(
        "auto_load, model on meta",
        [
            ("mmap + assign", "meta_torch"),
            ("verify=False", "meta_ours_unverified"),
            ("auto_load", "meta_ours"),
        ],
        "0.5",
    ),
    Work(
        "auto_load, model on meta, private copy",
        [
            ("torch.load + assign", "meta_torch_private"),
            ("materialise, verify=False", "meta_ours_private_unverified"),
            ("materialise", "meta_ours_private"),
        ],
        "0.6",
    ),
    Work(
        "auto_load, flat container", [("load_state_dict", "flat_torch"), ("auto_load", "flat_ours")], "0.02"
    ),
    Work(
        "renames, .pth to .pth",
        [
            ("cp", "cp"),
            ("torch", "rewrite_torch"),
            ("torch, mmap", "rewrite_torch_mmap"),
            (f"repair, no verify, {UNSYNCED}", "rewrite_ours_unsynced"),
        ],
        "1.0",
    ),
    Work(
        "renames, .pth to .pth, with fsync",
        [
            ("cp and fsync", "cp_sync"),
            ("repair, no verify", "rewrite_ours"),
            ("repair, verified", "rewrite_ours_verified"),
        ],
        "1.0",
    ),
    Work(
        "to .safetensors",
        [
            ("cp", "cp"),
            ("safetensors load + save", "rewrite_safetensors"),
            (f".pth, no verify, {UNSYNCED}", "to_safetensors_ours_unsynced"),
            (f".safetensors, no verify, {UNSYNCED}", "safetensors_ours_unsynced"),
        ],
        "1.0",
    ),
    Work(
        "to .safetensors, with fsync",
        [
            ("cp and fsync", "cp_sync"),
            (".pth, no verify", "to_safetensors_ours"),
            (".safetensors, no verify", "safetensors_ours"),
            (".safetensors, verified", "safetensors_ours_verified"),
        ],
        "1.0",
    ),
    Work(
        "tiny tensors, renamed",
        [
            ("torch", "rewrite_tiny_torch"),
            (".pth, no verify", "rewrite_tiny_ours"),
            (".pth, verified", "rewrite_tiny_ours_verified"),
            (".safetensors, no verify", "tiny_to_safetensors_ours"),
        ],
        "0.1",
    ),
    Work(
        "split q, k, v",
        [("cp", "cp_fused"), (f"repair, no verify, {UNSYNCED}", "split_ours_unsynced")],
        "1.5",
    ),
    Work(
        "split q, k, v, with fsync",
        [("cp and fsync", "cp_fused_sync"), ("repair, no verify", "split_ours")],
        "1.5",
    ),
)

WORKER = """
import json, resource, sys
sys.path.insert(0, sys.argv[1])
from pathlib import Path
from benchmarks import speed_methods
seconds = getattr(speed_methods, sys.argv[2])(Path(sys.argv[3]))
peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (1024 if sys.platform != "darwin" else 1 << 20)
anon = [l for l in Path("/proc/self/status").read_text().splitlines() if l.startswith("RssAnon")] \\
    if sys.platform == "linux" else []
print(json.dumps([seconds, peak, int(anon[0].split()[1]) / 1024 if anon else 0]))
"""


def run(method: str, data: Path) -> tuple[float, float, float]:
    """Seconds, peak MB, private MB at the end."""
    env = {**os.environ, "PYTHONPATH": str(ROOT), "NO_COLOR": "1"}
    env.pop("PYTHONDONTWRITEBYTECODE", None)  # without it every process would compile everything again
    if " " not in method:
        command = [sys.executable, "-c", WORKER, str(ROOT), method, str(data)]
        done = subprocess.run(command, capture_output=True, text=True, env=env, cwd=data)
        if done.returncode:
            raise SystemExit(f"{method} failed:\n{done.stderr}")
        seconds, peak, private = json.loads(done.stdout.splitlines()[-1])
        return seconds, peak, private
    import shlex

    start = time.perf_counter()
    child = subprocess.Popen(
        [sys.executable, *shlex.split(method)], stdout=subprocess.DEVNULL, env=env, cwd=data
    )
    _, status, usage = os.wait4(child.pid, 0)
    if status:
        raise SystemExit(f"{method} failed")
    return time.perf_counter() - start, usage.ru_maxrss / 1024, 0.0


def measure(work: Work, data: Path, rounds: int) -> list[str]:
    """The rows of one work."""
    names = [method for _, method in work.methods]
    for method in names:
        run(method, data)
    found: dict[str, list[tuple[float, float, float]]] = {name: [] for name in names}
    for _ in range(rounds):
        for method in random.sample(names, len(names)):
            found[method].append(run(method, data))
    rows = []
    for words, method in work.methods:
        times = [row[0] for row in found[method]]
        ratio = statistics.median(t / p[0] for t, p in zip(times, found[names[0]], strict=True))
        peak, private = (statistics.median(row[i] for row in found[method]) for i in (1, 2))
        shown = "" if method == names[0] else f"{ratio:.3f}"
        rows.append(
            f"| {work.title} | {words} | {min(times):.4f} | {statistics.median(times):.4f} | {shown} "
            f"| {peak:.0f} | {private or peak:.0f} | {work.goal} |"
        )
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="small files, three rounds: two minutes")
    parser.add_argument("--rounds", type=int, default=0)
    parser.add_argument("--only", default="", help="works with this word in their title")
    parser.add_argument("--folder", type=Path, help="where the files are made and kept")
    asked = parser.parse_args()
    size = "quick" if asked.quick else "full"
    with tempfile.TemporaryDirectory(prefix="ckptdoctor-bench-") as temporary:
        data = (asked.folder or Path(temporary)) / size
        data.mkdir(parents=True, exist_ok=True)
        print(f"making files in {data}", file=sys.stderr)
        subprocess.run(
            [sys.executable, "-m", "benchmarks.speed_data", str(data), size],
            check=True,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
        )
        print("| work | method | min s | median s | x peer | peak MB | private MB | goal |")
        print("|---|---|---|---|---|---|---|---|")
        for work in WORKS:
            if asked.only in work.title:
                for row in measure(work, data, asked.rounds or (3 if asked.quick else 5)):
                    print(row, flush=True)


if __name__ == "__main__":
    main()
