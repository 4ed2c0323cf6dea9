"""Globs match whole segments of whole keys."""

from __future__ import annotations

import pytest

from ckptdoctor.keys import PatternError, matches, select


@pytest.mark.parametrize(
    ("pattern", "key", "fits"),
    [
        ("fc.*", "fc.bias", True),
        ("fc.*", "fc.a.bias", False),
        ("fc.*", "myfc.bias", False),
        ("fc", "fc.bias", False),
        ("fc.**", "fc.a.bias", True),
        ("fc.**", "fc", True),
        ("fc.**", "fc2.bias", False),
        ("**.bias", "bias", True),
        ("**.bias", "a.b.bias", True),
        ("**.bias", "a.b.nobias", False),
        ("**", "anything.at.all", True),
        ("head*.weight", "head_dist.weight", True),
        ("layer.1", "layer.10", False),
        ("layers.{0..3,7}.w", "layers.7.w", True),
        ("layers.{0..3,7}.w", "layers.4.w", False),
        ("layers.{i}.w", "layers.12.w", True),
        ("layers.{i}.w", "layers.x.w", False),
        ("a\\*b", "a*b", True),
        ("a\\*b", "axb", False),
        ("a.b", "axb", False),
        ("a.**.b.**.c", "a.b.c", True),
    ],
)
def test_matches(pattern: str, key: str, fits: bool) -> None:
    assert matches(pattern, key) is fits


def test_select_keeps_order() -> None:
    assert select("*.w", ["b.w", "a.w", "a.b"]) == ["b.w", "a.w"]
    assert select("{b,a}.w", ["b.w", "a.w", "a.b"]) == ["b.w", "a.w"]


@pytest.mark.parametrize("pattern", ["a.{", "**.**.**.**.**", "a.***", "{i+1}"])
def test_bad_patterns_are_refused(pattern: str) -> None:
    with pytest.raises(PatternError):
        matches(pattern, "a")
