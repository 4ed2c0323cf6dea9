"""Score the matching engine and the baselines on cases with known truth.

    python benchmarks/matching.py fixtures/cases
    python benchmarks/matching.py fixtures/cases --case T4_vit_timm_to_tv -v
    python benchmarks/matching.py fixtures/cases --dump alignments.json
    python benchmarks/matching.py fixtures/cases --mutations 2000

Exit status 1 when the engine was wrong anywhere.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.baselines import BASELINES, run_baseline
from benchmarks.cases import Case, read_cases
from benchmarks.mutations import mutations
from benchmarks.scoring import KINDS, Kind, Outcome, answer_of, judge
from ckptdoctor.align import align
from ckptdoctor.align.model import Alignment
from ckptdoctor.errors import CkptDoctorError

ENGINE = "ckptdoctor"
SHOWN = 12  # differences per case, unless -v


@dataclass(frozen=True)
class Result:
    case: Case
    outcome: Outcome
    seconds: float
    alignment: Alignment | None


def run_case(case: Case) -> Result:
    """The engine's answer to a case, judged and timed. A crash is a refusal that says so."""
    begin = time.perf_counter()
    try:
        alignment = align(case.source, case.target)
    except (CkptDoctorError, ArithmeticError, LookupError, TypeError, ValueError, RecursionError) as error:
        seconds = time.perf_counter() - begin
        crash = f"crashed: {type(error).__name__}: {error}"
        return Result(case, Outcome("refused", (crash,)), seconds, None)
    seconds = time.perf_counter() - begin
    return Result(case, judge(case, answer_of(alignment)), seconds, alignment)


def tally(pairs: Iterable[tuple[str, Kind]]) -> dict[str, Counter[Kind]]:
    """Group -> how often each outcome."""
    found: dict[str, Counter[Kind]] = {}
    for group, kind in pairs:
        found.setdefault(group, Counter())[kind] += 1
    return found


def table(head: str, rows: dict[str, dict[str, Counter[Kind]]]) -> list[str]:
    """Lines of a table: a row per group, and per tool the counts of the outcomes."""
    groups = list(dict.fromkeys(g for counts in rows.values() for g in counts))
    width = max(len(head), *map(len, groups), 5) + 2
    letters = " ".join(f"{k[:3]:>4}" for k in KINDS)
    lines = [" " * (width + 6) + "".join(f"  {tool:^{len(letters)}}" for tool in rows)]
    lines.append(f"{head:<{width}}{'cases':>6}" + f"  {letters}" * len(rows))
    for group in [*groups, "all"]:
        cells, total = "", 0
        for counts in rows.values():
            count = sum(counts.values(), Counter()) if group == "all" else counts.get(group, Counter())
            cells += "  " + " ".join(f"{count[k] or '.':>4}" for k in KINDS)
            total = max(total, count.total())
        lines.append(f"{group:<{width}}{total:>6}{cells}")
    return lines


def compare(results: Sequence[Result]) -> dict[str, dict[str, Counter[Kind]]]:
    """Tool -> tier -> outcomes, on the scored cases."""
    scored = [r for r in results if r.case.scored]
    rows = {ENGINE: tally((r.case.tier, r.outcome.kind) for r in scored)}
    for name in BASELINES:
        rows[name] = tally((r.case.tier, judge(r.case, run_baseline(name, r.case)).kind) for r in scored)
    return rows


def details(results: Sequence[Result], verbose: bool) -> list[str]:
    """What kept cases from being solved; with ``verbose`` every case and every key."""
    lines = []
    for r in results:
        if r.outcome.kind == "solved" and not verbose:
            continue
        note = "" if r.case.scored else "  (not scored)"
        lines.append(f"{r.case.name:<46} {r.outcome.kind:<8}{r.seconds * 1000:8.1f} ms{note}")
        if r.alignment is not None and r.alignment.refusal:
            lines.append(f"    refusal: {r.alignment.refusal}")
        shown = r.outcome.differences if verbose else r.outcome.differences[:SHOWN]
        lines += [f"    {d}" for d in shown]
        if len(r.outcome.differences) > len(shown):
            lines.append(f"    ... and {len(r.outcome.differences) - len(shown)} more (-v)")
        if verbose and r.alignment is not None:
            lines += [f"    ? {q.kind}: {q.title}" for q in r.alignment.questions]
            lines += [f"    ! {w}" for w in r.alignment.warnings]
    return lines


def dump(results: Sequence[Result], file: Path) -> None:
    """One JSON file: a case's name -> its alignment as in ``diagnose --format json``."""
    file.parent.mkdir(parents=True, exist_ok=True)
    entries = {r.case.title or r.case.name: dump_entry(r) for r in results}
    file.write_text(json.dumps(entries, indent=1) + "\n")


def dump_entry(r: Result) -> dict[str, object]:
    """The alignment of one case as plain data."""
    entry: dict[str, object] = {"file": r.case.name, "outcome": r.outcome.kind, "seconds": r.seconds}
    if r.alignment is None:
        return entry
    a = r.alignment
    entry |= {
        "verdict": a.verdict,
        "refusal": a.refusal,
        "alignment": [m.to_dict() for m in a.matches.values()],
        "unused": [{"source": u.source, "reason": u.reason, "decided": u.decided} for u in a.unused.values()],
        "questions": [
            {
                "kind": q.kind,
                "title": q.title,
                "targets": list(q.targets),
                "sources": list(q.sources),
                "notes": list(q.notes),
                "flags": [list(f) for f in q.flags],
            }
            for q in a.questions
        ],
    }
    return entry


def main(argv: Sequence[str] | None = None) -> int:
    """Run, print, and say by the exit status whether anything was wrong."""
    args = _arguments(argv)
    cases = [c for c in read_cases(args.dir) if not args.case or args.case in c.name]
    results = [run_case(case) for case in cases]
    print("\n".join(details(results, args.verbose)))
    print()
    print("\n".join(table("tier", compare(results))))
    times = sorted(r.seconds for r in results)
    if times:
        keys = sum(len(r.case.target) for r in results)
        print(
            f"\n{ENGINE}: {sum(times):.2f} s for {len(times)} cases with {keys} model keys; "
            f"slowest {times[-1]:.2f} s"
        )
    if args.dump:
        dump(results, args.dump)
    mutated = (
        [run_case(case) for case in mutations(cases, args.mutations, args.seed)] if args.mutations else []
    )
    if mutated:
        print_mutations(mutated, args.verbose)
    return int(any(r.outcome.kind == "wrong" for r in [*results, *mutated] if r.case.scored))


def print_mutations(results: Sequence[Result], verbose: bool) -> None:
    """The tier of mutated pairs: the wrong ones, then a row per kind."""
    wrong = [r for r in results if r.outcome.kind == "wrong" or r.alignment is None]
    print("\n".join(["", *details(results if verbose else wrong, verbose)]))
    print()
    print("\n".join(table("mutation", {ENGINE: tally((r.case.kind, r.outcome.kind) for r in results)})))
    print(f"\n{len(results)} mutated pairs in {sum(r.seconds for r in results):.1f} s")


def _arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("dir", type=Path, help="folder of cases")
    parser.add_argument("--case", default="", help="only cases whose name contains this")
    parser.add_argument("--dump", type=Path, metavar="FILE", help="write each case's alignment as JSON")
    parser.add_argument("--mutations", type=int, default=0, metavar="N", help="also N mutated pairs, tier M")
    parser.add_argument("--seed", type=int, default=0, help="of the mutations")
    parser.add_argument("-v", "--verbose", action="store_true", help="every case and every difference")
    return parser.parse_args(argv)


if __name__ == "__main__":
    sys.exit(main())
