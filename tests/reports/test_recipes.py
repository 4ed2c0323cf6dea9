"""docs/recipes.md is made from the recipes; `explain` prints one of them.

`UPDATE_DOCS=1 pytest tests/reports/test_recipes.py` writes the page again.
"""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from click.testing import CliRunner

from ckptdoctor.align.recipe import recipes
from ckptdoctor.cli.commands import group
from ckptdoctor.reports.recipes import recipes_markdown

PAGE = Path(__file__).parents[2] / "docs" / "recipes.md"


def test_the_page_is_what_the_recipes_say():
    if os.environ.get("UPDATE_DOCS"):
        PAGE.write_text(recipes_markdown(), encoding="utf-8")
    assert PAGE.read_text(encoding="utf-8") == recipes_markdown(), "UPDATE_DOCS=1 writes it again"


@pytest.mark.parametrize("recipe", recipes(), ids=lambda r: r.name)
def test_explain_prints_a_recipe_with_its_note_and_sources(recipe):
    result = CliRunner().invoke(group, ["explain", recipe.name])
    assert result.exit_code == 0
    text = " ".join(result.output.split())
    assert " ".join(recipe.note.split())[:60] in text
    data = json.loads(CliRunner().invoke(group, ["explain", recipe.name, "--format", "json"]).output)
    assert data["name"] == recipe.name
    assert data["sources"]


def test_names_of_recipes_are_unique_and_each_names_its_sources():
    names = [r.name for r in recipes()]
    assert len(set(names)) == len(names)
    assert all(r.sources and r.note and r.title for r in recipes())
