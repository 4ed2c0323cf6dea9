"""`make demo`: a real checkpoint that does not load, diagnosed, repaired and loaded strictly.

Every command is printed before it runs, and can be pasted. The first one that does not end as it should
ends the demo with exit code 1.
"""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
OUT = Path(".cache/demo")
PUBLISHED = ".cache/real/facenet_pytorch/data/onet.pt"
DDP, FIXED, PLAN = OUT / "onet_ddp.pth", OUT / "onet_fixed.pth", OUT / "repair.toml"
MODEL = "demo/model.py:ONet"
THREE = """--kwargs '{"classes": 3}'"""


def say(text: str) -> None:
    print(f"\n# {text}", flush=True)


def run(command: str, *, ends: int, shows: str = "", lines: int = 60) -> None:
    """Run `command`, expect exit code `ends` and `shows` in what it prints, of which `lines` are shown."""
    print(f"$ {command}", flush=True)
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    done = subprocess.run(
        shlex.split(command),
        cwd=ROOT,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        check=False,
        env={**os.environ, "PATH": path},
    )
    printed = done.stdout.rstrip().splitlines()
    print("\n".join([*printed[-lines:], f"[exit {done.returncode}]"]), flush=True)
    if done.returncode != ends or shows not in done.stdout:
        sys.exit(f"demo: expected exit {ends}" + (f" and the words {shows!r}" if shows else ""))


def main() -> None:
    (ROOT / OUT).mkdir(parents=True, exist_ok=True)
    for old in (DDP, FIXED, PLAN, OUT / "onet_three.pth"):
        (ROOT / old).unlink(missing_ok=True)

    say("The published O-Net of facenet-pytorch, saved again by a training script under DataParallel.")
    run(f"python demo/save.py {PUBLISHED} {DDP}", ends=0)
    say("Meanwhile demo/model.py has put its layers into a Sequential. torch says:")
    run(f"python demo/load.py {PUBLISHED} {DDP}", ends=1, shows="Missing key(s)", lines=4)

    say("What is in the file? (No torch, nothing executed.)")
    run(f"ckptdoctor inspect {DDP}", ends=0, shows="state_dict")
    say("Why does it not load?")
    run(f"ckptdoctor diagnose {MODEL} {DDP}", ends=1, shows="`module.`")
    say("What would the repair do? A file to review:")
    run(f"ckptdoctor plan {MODEL} {DDP} -o {PLAN}", ends=0)
    run(f"cat {PLAN}", ends=0, shows='prefix = "module."')
    say("Do it.")
    run(f"ckptdoctor repair {MODEL} {DDP} -o {FIXED}", ends=0)
    say("torch alone loads the new file, and the network computes what the original computes:")
    run(f"python demo/load.py {PUBLISHED} {FIXED}", ends=0, shows="loaded strictly")
    run(f"ckptdoctor diagnose {MODEL} {FIXED}", ends=0)

    say("A head with three classes instead of two: no repair keeps its values, so ckptdoctor asks.")
    run(f"ckptdoctor repair {MODEL} {DDP} -o {OUT}/onet_three.pth {THREE}", ends=1, shows="--reinit")
    say("The answer is a flag, and is recorded in the plan.")
    run(f"ckptdoctor repair {MODEL} {DDP} -o {OUT}/onet_three.pth {THREE} --reinit 'dense6_1.*'", ends=0)
    run(f"ckptdoctor diagnose {MODEL} {OUT}/onet_three.pth {THREE}", ends=0)
    say("Done: everything ended as it should.")


if __name__ == "__main__":
    main()
