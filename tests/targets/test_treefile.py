"""The ``.tree`` text: exact both ways, readable, mergeable, and strict about what it reads."""

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ckptdoctor.errors import ReadError, TargetError
from ckptdoctor.targets import load_target
from ckptdoctor.targets.treefile import HEADER, TreeFileError, read_tree, write_tree
from ckptdoctor.trees import DTYPE_SIZES, ParamTree, TensorSpec

HOSTILE = st.sampled_from(
    [*"a.0{}[],*\\\"'#<=>| \t\n\r\x0b\x1b\x85\u2028\u202e\ud800é漢", "007", "10", "=======", "x y"]
)
KEYS = st.one_of(
    st.text(max_size=8),
    st.lists(HOSTILE, max_size=6).map("".join),
    st.builds(
        "layers.{}.{}.{}".format, st.integers(0, 12), st.integers(0, 2), st.sampled_from(["bias", "weight"])
    ),
)
SPECS = st.builds(
    lambda layout, storage, **facts: TensorSpec(
        layout=layout, storage=storage if layout == "strided" else "", **facts
    ),
    shape=st.lists(st.integers(0, 5), max_size=3).map(tuple),
    dtype=st.sampled_from(sorted(DTYPE_SIZES)),
    kind=st.sampled_from(["param", "buffer", ""]),
    storage=st.sampled_from(["", "", "", "1", "2"]),
    offset=st.sampled_from([0, 0, 4]),
    layout=st.sampled_from(["strided"] * 5 + ["sparse_coo", "quantized"]),
)
TREES = st.dictionaries(KEYS, SPECS, max_size=14).flatmap(
    lambda specs: st.builds(
        lambda transient, extra: ParamTree(
            specs,
            transient={f"{k}.t": replace(s, kind="buffer", storage="") for k, s in transient.items()},
            extra={f"{k}._extra_state": words for k, words in extra.items()},
        ),
        st.dictionaries(KEYS, SPECS, max_size=3),
        st.dictionaries(KEYS, st.text(max_size=5), max_size=2),
    )
).filter(lambda t: not (t.specs.keys() & t.transient.keys() or t.specs.keys() & t.extra.keys()))  # fmt: skip


def facts(tree: ParamTree) -> object:
    """What a .tree file keeps."""
    return (
        {k: (s.shape, s.dtype, s.kind, s.layout) for k, s in tree.specs.items()},
        {frozenset(group) for group in tree.ties},
        {k: (s.shape, s.dtype, s.kind) for k, s in tree.transient.items()},
        dict(tree.extra),
    )


@given(TREES)
def test_law_round_trip(tree: ParamTree) -> None:
    text = write_tree(tree)
    again = read_tree(text.encode().decode(), "m.tree")
    assert facts(again) == facts(tree)
    assert again.digest == tree.digest
    assert not again.ordered
    assert write_tree(again) == text


@given(TREES)
def test_law_one_line_an_entry_and_nothing_to_run_in_a_terminal(tree: ParamTree) -> None:
    lines = write_tree(tree).split("\n")
    assert lines[0] == HEADER
    assert lines[-1] == ""
    assert all(line.isprintable() for line in lines)
    assert len(lines) <= len(tree.specs) + len(tree.transient) + len(tree.extra) + 2


@given(TREES)
def test_law_the_order_of_keys_does_not_matter(tree: ParamTree) -> None:
    turned = replace(
        tree, specs=dict(reversed(tree.specs.items())), transient=dict(reversed(tree.transient.items()))
    )
    assert write_tree(turned) == write_tree(tree)


EXAMPLE = """\
# ckptdoctor tree 1
bn1.num_batches_tracked                           i64[]  buffer
bn1.running_mean                                  f32[64]  buffer
bn1.weight                                        bf16[64]  param
freq                                              f32[8]  transient
head._extra_state                                 extra "dict of 2"
head.weight                                       f32[10,4]  param = emb.weight
layers.{2..3,10}.conv.weight                      f32[64,3,7,7]  param
plain                                             f8_e4m3fn[2]
"""


def test_the_text() -> None:
    conv = TensorSpec((64, 3, 7, 7), kind="param")
    tied = TensorSpec((10, 4), kind="param", storage="9")
    tree = ParamTree(
        {
            "layers.10.conv.weight": conv,
            "plain": TensorSpec((2,), "float8_e4m3fn"),
            "layers.2.conv.weight": conv,
            "layers.3.conv.weight": conv,
            "head.weight": tied,
            "emb.weight": tied,
            "bn1.num_batches_tracked": TensorSpec((), "int64", "buffer"),
            "bn1.running_mean": TensorSpec((64,), kind="buffer"),
            "bn1.weight": TensorSpec((64,), "bfloat16", "param"),
        },
        extra={"head._extra_state": "dict of 2"},
        transient={"freq": TensorSpec((8,), kind="buffer")},
    )
    emb = "emb.weight                                        f32[10,4]  param\n"
    assert write_tree(tree) == EXAMPLE.replace("freq  ", emb + "freq  ")


def test_lines_of_two_branches_merge() -> None:
    base = {f"layers.{i}.{n}": TensorSpec((4, i + 1)) for i in range(3) for n in ("a", "b")}
    ours = write_tree(ParamTree(base | {"a_key_that_is_very_long." * 4 + "w": TensorSpec((1,))})).splitlines()
    theirs = write_tree(ParamTree(base | {"head.w": TensorSpec((2,))})).splitlines()
    before = write_tree(ParamTree(base)).splitlines()
    assert len(set(ours) - set(before)) == len(set(theirs) - set(before)) == 1
    assert set(before) <= set(ours) & set(theirs)


def test_what_people_write_by_hand_is_read() -> None:
    tree = read_tree(
        "\ufefffc.{bias,weight} f32[3]\r\n\r\n# why: half\r\n  b\tf16[2]  buffer\r\n".replace("\t", " "), "x"
    )
    assert {k: (s.shape, s.dtype, s.kind) for k, s in tree.specs.items()} == {
        "fc.bias": ((3,), "float32", ""),
        "fc.weight": ((3,), "float32", ""),
        "b": ((2,), "float16", "buffer"),
    }


WRONG = {
    "": "m.tree:1: the file is empty",
    " \n\n": "m.tree:1: the file is empty",
    "# ckptdoctor tree 2\n": "m.tree:1: a tree of another format",
    "a f32[1]\na f32[2]\n": "m.tree:2: `a` is already on line 1",
    "{a,b} f32[1]\n\nb f32[1]": "m.tree:3: `b` is already on line 1",
    "{a,a} f32[1]": "m.tree:1: `{a,a}` names a key twice",
    "<<<<<<< HEAD\na f32[1]\n=======\n": "m.tree:1: an unresolved merge conflict",
    "a f32[1]\n>>>>>>> theirs": "m.tree:2: an unresolved merge conflict",
    "a": "m.tree:1: expected dtype[shape] as in f32[64,3], found ``",
    "a f32": "expected dtype[shape]",
    "a f32[1,]": "expected dtype[shape]",
    "a f32[-1]": "expected dtype[shape]",
    "a f32[1] parameter": "`parameter` is not param, buffer or transient",
    "a f32[1] param buffer": "`buffer` is not",
    "a.* f32[1]": "m.tree:1: ",
    "a{ f32[1]": "m.tree:1: ",
    "a.{0..99999999999} f32[1]": "m.tree:1: ",
    "a f32[1] = b": "m.tree:1: `b` is no tensor of its own",
    "a f32[1]\nb f32[1] = a\nc f32[1] = b": "m.tree:3: `b` is no tensor of its own",
    "a f32[2]\nb f32[1] = a": "m.tree:2: tied to `a`, which is f32[2]",
    "a f32[2]\nb f32[2] =": "m.tree:2: expected one key after `=`",
    "a f32[2]\nb f32[2] = a c": "m.tree:2: expected one key after `=`",
    "a extra 3": 'm.tree:1: expected `extra "words"`',
    "a nope32[1]": "m.tree:1: `nope32` is no dtype",
}


@pytest.mark.parametrize("text", WRONG)
def test_errors_name_file_and_line(text: str) -> None:
    with pytest.raises(TreeFileError) as caught:
        read_tree(text, "m.tree")
    assert WRONG[text] in str(caught.value)
    assert str(caught.value).startswith("m.tree:")
    assert isinstance(caught.value, TargetError)
    assert isinstance(caught.value, ReadError)


@given(
    st.text(max_size=60)
    | st.lists(st.sampled_from([*EXAMPLE.split(), "\n", " ", "{", "="]), max_size=20).map("".join)
)
def test_any_text_is_read_or_refused(text: str) -> None:
    try:
        tree = read_tree(text, "m.tree")
    except TreeFileError:
        return
    assert facts(read_tree(write_tree(tree), "m.tree")) == facts(tree)


def test_as_a_model_without_torch(tmp_path: Path) -> None:
    path = f"{tmp_path}/resnet.tree"
    with open(path, "w", encoding="utf-8") as stream:
        stream.write(write_tree(ParamTree({"fc.weight": TensorSpec((3, 2), kind="param")})))
    target = load_target(path)
    assert target.tree["fc.weight"] == TensorSpec((3, 2), kind="param")
    assert target.label == path
    code = f"import sys; from ckptdoctor.targets import load_target; load_target({path!r})"
    subprocess.run([sys.executable, "-c", code + "; assert 'torch' not in sys.modules"], check=True)
    with pytest.raises(TargetError, match="--kwargs is for models that are built from source"):
        load_target(path, kwargs={"a": 1})
    with pytest.raises(TargetError, match="cannot be read: No such file"):
        load_target(f"{tmp_path}/gone.tree")
