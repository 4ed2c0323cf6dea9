"""Plan files: what is written is read back, and what is wrong is refused with its place."""

from __future__ import annotations

import tomllib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ckptdoctor.errors import PlanError
from ckptdoctor.keys import escape
from ckptdoctor.plan import Plan, from_toml, json_schema, to_toml
from ckptdoctor.plan.model import (
    Drop,
    OpenQuestion,
    Reinit,
    Rename,
    Result,
    SourceRef,
    StripPrefix,
    TargetRef,
)
from ckptdoctor.plan.toml import quote

DIGEST = "sha256:" + "0" * 64
TEXT = st.text(st.characters(exclude_categories=()))
TEXT |= st.sampled_from(['"""', "'''", "\\", "\x00\x1b[2J", "\ud800"])


def make(**changes: object) -> Plan:
    data = {
        "source": SourceRef(file="a.pth", tree=DIGEST, keys=3),
        "target": TargetRef(model="m.py:net", tree=DIGEST, keys=3),
        "step": (
            StripPrefix(prefix="module.", keys=3, why="written by torch.nn.DataParallel"),
            Rename(from_="layer{i}.**", to="stages.{i-1}.**", keys=2),
            Reinit(to=("fc.{bias,weight}",), keys=1, why="1000 -> 10 classes", safety="unsafe"),
        ),
        "result": Result(loaded=2, reinitialised=1),
    }
    return Plan(**{**data, **changes})


@given(TEXT, TEXT, st.lists(TEXT, max_size=3), st.text(min_size=1))
def test_hostile_texts_come_back_and_never_raw(file: str, why: str, decisions: list[str], key: str) -> None:
    plan = make(
        source=SourceRef(file=file, state_dict=why, tree=DIGEST, keys=1),
        decision=tuple(decisions),
        step=(Drop(from_=(escape(key),), keys=1, why=why), Rename(from_=escape(key), to=escape(key), keys=1)),
        question=(OpenQuestion(kind="shape", title=why, flags=(file,)),),
    )
    text = to_toml(plan)
    assert all(line.isprintable() for line in text.split("\n"))
    assert from_toml(text) == plan
    text.encode()


@given(st.text())
def test_quoted_texts_are_toml(text: str) -> None:
    assert tomllib.loads(f"x = {quote(text)}") == {"x": text}


def test_the_file_reads_as_its_reviewer_expects() -> None:
    text = to_toml(make())
    assert text.startswith("# Review this like a database migration")
    assert (
        """[[step]]
op = "rename"
from = "layer{i}.**"
to = "stages.{i-1}.**"
keys = 2
"""
        in text
    )
    assert text.endswith("[result]\nloaded = 2\nreinitialised = 1\n")


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ('to = "stages.{i-1}.**"', 'to = "stages.**"', "line 21, step 2 (rename)"),
        ("keys = 2", "keys = 0", "step 2 (rename), `keys`"),
        ("keys = 2", "keys = true", "step 2 (rename), `keys`"),
        ("keys = 2", 'keys = 2\nextra = "x"', "step 2 (rename), `extra`"),
        ('op = "rename"', 'op = "exec"', "step 2 (exec)"),
        ('op = "rename"', "", "step 2 (no op)"),
        ('prefix = "module."', 'prefix = "module"', "step 1 (strip_prefix), `prefix`"),
        ("format = 1", "format = 2", "[format]"),
        ("[target]", "[target]\nweird = 1", "[target], `weird`"),
        ("sha256:0", "md5:0", "[source], `tree`"),
        ("format = 1", "format = ", "line 2"),
        ('["fc.{bias,weight}"]', '["fc.{bias"]', "step 3 (reinit)"),
        ('["fc.{bias,weight}"]', '"fc.bias"', "step 3 (reinit)"),
    ],
)
def test_what_is_wrong_is_refused_with_its_place(old: str, new: str, words: str) -> None:
    text = to_toml(make())
    assert old in text
    with pytest.raises(PlanError) as error:
        from_toml(text.replace(old, new, 1))
    assert words in str(error.value)
    assert str(error.value).replace("\n", "").isprintable()


def test_strips_come_first() -> None:
    rename, strip = Rename(from_="a", to="b", keys=1), StripPrefix(prefix="m.", keys=1)
    with pytest.raises(ValueError, match="before all others"):
        make(step=(rename, strip))


def test_the_schema_names_every_step() -> None:
    steps = json_schema()["properties"]["step"]["items"]["discriminator"]["mapping"]
    ops = "strip_prefix strip_segment rename transform tie keep reinit drop cast place"
    assert set(steps) == set(ops.split())
