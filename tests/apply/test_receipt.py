"""The receipt: short for people, complete for machines."""

from ckptdoctor.receipt import Entry, Receipt, listing


def receipt():
    return Receipt(
        source="in.pth",
        state_dict="ema",
        target="net.py:Net",
        entries=(
            Entry("a", "loaded", ("x", "y"), ("concat(0)",), 12000, "float32", "float16", "rounding"),
            Entry("b", "loaded", ("b",), (), 3, "float32", "float32"),
            Entry("c", "tied", ("a",)),
            Entry("d", "kept"),
            Entry("e", "reinitialised"),
        ),
        unused={"z": "not in the model"},
    )


def test_str_is_a_few_lines():
    assert str(receipt()).splitlines() == [
        "loaded 2 tensors (12,003 values) from in.pth [ema] into net.py:Net",
        "also 1 tied, 1 kept (derived), 1 left at initial values, 1 of the checkpoint unused",
        "cast 1 rounding",
        "verified: strict, every loaded tensor equals the file's bit for bit after the plan's ops",
    ]


def test_dict_has_every_key_and_the_tallies():
    data = receipt().to_dict()
    assert (data["format"], data["loaded"], data["tied"], data["kept"], data["reinitialised"]) == (
        1,
        2,
        1,
        1,
        1,
    )
    assert [e["target"] for e in data["entries"]] == list("abcde")
    assert data["casts"] == {"rounding": 1} and data["unused"] == {"z": "not in the model"}


def test_keys_from_files_are_never_shown_raw():
    assert "\x1b" not in listing(["a\x1b[31m", "b\n"]) and listing(["a"] * 9, most=2).endswith("and 7 more")
