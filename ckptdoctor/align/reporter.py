"""Hooks into the engine. All are empty; a front end overrides those it wants (`--trace`, progress)."""

from __future__ import annotations

from collections.abc import Sequence


class Reporter:
    """Called while the engine works. ``target`` and ``source`` are module paths in canonical form."""

    def step(self, name: str) -> None:
        """A pass begins."""

    def candidate(self, target: str, source: str, score: float, reasons: Sequence[str]) -> None:
        """A pair was scored."""

    def decided(self, target: str, source: str, reasons: Sequence[str]) -> None:
        """A pair is certain."""

    def undecided(self, target: str, sources: Sequence[str]) -> None:
        """Several sources compete for a target."""

    def unmatched(self, target: str) -> None:
        """No source has the shapes of this target."""

    def refused(self, why: str) -> None:
        """The engine claims nothing."""


class TextReporter(Reporter):
    """Collects one line an event; :attr:`lines` is what ``--trace`` prints."""

    def __init__(self) -> None:
        self.lines: list[str] = []
        self._scores: dict[str, list[tuple[float, str, Sequence[str]]]] = {}

    def step(self, name: str) -> None:
        """A heading."""
        self.lines.append(f"# {name}")

    def candidate(self, target: str, source: str, score: float, reasons: Sequence[str]) -> None:
        """Remembered until the target is decided."""
        self._scores.setdefault(target, []).append((score, source, reasons))

    def decided(self, target: str, source: str, reasons: Sequence[str]) -> None:
        """The pair, why, and the two next best."""
        self.lines.append(f"{target} <- {source}: {'; '.join(reasons) or 'nothing else fits'}")
        misses = [m for m in self._scores.get(target, ()) if m[1] != source]
        own = next((s for s, name, _ in self._scores.get(target, ()) if name == source), 0.0)
        for score, name, why in sorted(misses, reverse=True, key=lambda m: m[0])[:2]:
            self.lines.append(
                f"    not {name} ({score:+.1f} against {own:+.1f}): {'; '.join(why) or 'no word for it'}"
            )

    def undecided(self, target: str, sources: Sequence[str]) -> None:
        """The target and its candidates."""
        self.lines.append(f"{target} ? {', '.join(sources)}")

    def unmatched(self, target: str) -> None:
        """The target alone."""
        self.lines.append(f"{target} - nothing of these shapes is left")

    def refused(self, why: str) -> None:
        """Why."""
        self.lines.append(f"refused: {why}")
