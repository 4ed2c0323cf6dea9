"""The known crossings, told from their own files: for ``ckptdoctor explain`` and for docs/recipes.md."""

from __future__ import annotations

from dataclasses import dataclass

from ckptdoctor.align.expressions import calls_in
from ckptdoctor.align.recipe import Recipe, recipes
from ckptdoctor.reports.page import Page

HEAD = """# Known crossings

Two code bases can keep the same network under other names **and** in another layout that no shape shows. A
recipe knows both sides by their names and says what has to be done to the values, in either direction. It is
used whole or not at all: where the names fit and a number is missing, ckptdoctor asks for it
(`--value num_attention_heads=32`); where the trees do not fit, it claims nothing about those tensors.

Numbers are read from a configuration beside the checkpoint (`config.json`, `params.json` ...), from
hyper-parameters inside it, from the model's own attributes, or from shapes that settle them. Two that
disagree are a question.

Each recipe is one file in `ckptdoctor/align/recipes/`, and each is proved by two implementations of the
network whose outputs agree after the repair and differ when its ops are left out (`tests/recipes`).
`ckptdoctor explain NAME` prints one. This page is made from those files.
"""


@dataclass(frozen=True)
class RecipeEntry:
    """What there is to say about one recipe."""

    name: str
    title: str
    note: str
    sides: tuple[str, str]
    layouts: tuple[str, ...]
    facts: tuple[str, ...]
    sources: tuple[str, ...]

    def to_dict(self) -> dict[str, object]:
        """Plain data for JSON."""
        return {
            "name": self.name,
            "title": self.title,
            "note": self.note,
            "sides": list(self.sides),
            "layouts": list(self.layouts),
            "facts": list(self.facts),
            "sources": list(self.sources),
        }


def find_recipe(name: str) -> Recipe | None:
    """The recipe of this name, or None."""
    return next((r for r in recipes() if r.name == name), None)


def recipe_entry(recipe: Recipe) -> RecipeEntry:
    """The entry of a recipe; its layouts are the pairs whose values move."""
    layouts = [
        f"{' + '.join(p.left)} -> {to}: {chain}"
        for p in recipe.pairs
        for to, chain in zip(p.right, p.forward, strict=True)
        if chain
    ]
    ways = [way for ways in recipe.values.values() for way in ways]
    facts = dict.fromkeys(name for way in ways for name in calls_in(way, "fact"))
    return RecipeEntry(
        recipe.name,
        recipe.title,
        recipe.note,
        (recipe.left.origin, recipe.right.origin),
        tuple(layouts),
        tuple(facts),
        recipe.sources,
    )


def recipe_page(entry: RecipeEntry) -> Page:
    """For ``ckptdoctor explain``."""
    page = Page()
    page.add((entry.name, "title"), ("  known crossing", "grey"))
    page.add("")
    page.add(f"{entry.title}. {entry.note}")
    page.add("")
    rows = [
        ("sides", entry.sides),
        ("layouts", entry.layouts),
        ("facts", entry.facts),
        ("sources", entry.sources),
    ]
    for word, lines in rows:
        if lines:
            page.add((f"{word}:", "help"))
            for line in lines:
                page.add(f"  {line}")
    return page


def recipes_markdown() -> str:
    """The text of docs/recipes.md."""
    lines = [HEAD]
    for entry in map(recipe_entry, recipes()):
        lines += [f"## {entry.name}", "", f"{entry.title}. {entry.note}", ""]
        lines += [f"- {side}" for side in entry.sides]
        lines += [f"- may ask for: {', '.join(f'`{f}`' for f in entry.facts)}"] if entry.facts else []
        if entry.layouts:
            lines += ["", "| what moves | how |", "|---|---|"]
            lines += ["| `{}` | `{}` |".format(*_cells(text)) for text in entry.layouts]
        lines += ["", "Sources: " + "; ".join(entry.sources) + ".", ""]
    return "\n".join(lines)


def _cells(layout: str) -> tuple[str, str]:
    """A table's cells; a bar between ops would end the cell."""
    what, _, how = layout.rpartition(": ")
    return what.replace("|", "\\|"), how.replace("|", "\\|")
