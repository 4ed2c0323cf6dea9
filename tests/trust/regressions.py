"""Shrunk pairs that once loaded wrong values without a question. Each was found by ``make fuzz``."""

from ckptdoctor.testing import Group, History, Layer, Network
from ckptdoctor.testing.history import Order, Relabel, Transpose

SQUARE = Layer("Linear", 3, 3)


def part(*names: str, layer: Layer = SQUARE) -> Group:
    return Group("Part", tuple((name, layer) for name in names))


def gated() -> Group:
    wide, back = Layer("Linear without bias", 2, 3), Layer("Linear without bias", 3, 2)
    return Group("Part", (("gate_proj", wide), ("up_proj", wide), ("down_proj", back)))


def listed(*nodes: Group | Layer) -> Group:
    return Group("ModuleList", tuple((str(i), node) for i, node in enumerate(nodes)))


def relabel(*rows: tuple[str, str]) -> Relabel:
    """``("a.b", "c")``: the node ``a.b`` is called ``c``."""
    return Relabel(tuple((tuple(old.split(".")), tuple(new.split("."))) for old, new in rows))


TIED_QK = Network(
    Group("Part", (("4", part("q_proj", "k_proj", "v_proj", "out_proj")),)),
    ties=(("4.q_proj.weight", "4.k_proj.weight"),),
)
TIED_NEUTRAL = Network(
    Group("Part", (("4", part("amber", "birch")),)), ties=(("4.amber.weight", "4.birch.weight"),)
)
LISTS = Group(
    "Part",
    (
        ("*", listed(part("fc1", "fc2"), part("fc1", "fc2"))),
        ("?", listed(part("fc1", "fc2"), part("fc1", "fc2"))),
    ),
)
CHINESE = Group("Part", (("编码器", listed(SQUARE, SQUARE)), ("解码器", listed(SQUARE, SQUARE))))

CASES: dict[str, tuple[Network, History]] = {
    "tied q and k, sorted file: the biases were exchanged": (
        TIED_QK,
        History((Order((2, 3, 0, 1, 4, 5, 6, 7)), relabel(("4", "module4"))), form="safetensors"),
    ),
    "tied modules without telling names": (
        TIED_NEUTRAL,
        History(
            (Order((3, 2, 1, 0)), relabel(("4.amber", "sable"), ("4.birch", "raven"))), form="safetensors"
        ),
    ),
    "numbers of blocks taken for numbers inside a block": (
        Network(
            Group("Part", (("2", listed(gated(), gated())),)),
            ties=(("2.0.gate_proj.weight", "2.0.up_proj.weight"),),
        ),
        History(
            (
                relabel(
                    ("2.1.gate_proj", "0"), ("2.1.up_proj", "1"), ("2.1.down_proj", "2"), ("2.0", "raven")
                ),
            ),
            form="safetensors",
        ),
    ),
    "names of signs only were no names": (
        Network(LISTS),
        History((relabel(("*.0", "1"), ("*.1", "2")),)),
    ),
    "names in another script were no names": (
        Network(CHINESE),
        History((relabel(("编码器.0", "1"), ("编码器.1", "2")),)),
    ),
    "a transposed block: its square weight-normed layer was turned as well": (
        Network(Group("Sequential", (("0", SQUARE), ("1", Layer("weight_norm", 2, 2)), ("2", gated())))),
        History((Transpose(("0.weight", "2.gate_proj.weight", "2.up_proj.weight", "2.down_proj.weight")),)),
    ),
    "a transposed block: its square embedding was turned as well": (
        Network(Group("Sequential", (("0", SQUARE), ("1", Layer("square table", 4)), ("2", gated())))),
        History((Transpose(("0.weight", "2.gate_proj.weight", "2.up_proj.weight", "2.down_proj.weight")),)),
    ),
    "a transposed list: its square embedding was turned as well": (
        Network(Group("Sequential", (("0", Layer("Linear", 2, 5)), ("1", Layer("square table", 4))))),
        History((Transpose(("0.weight",)),)),
    ),
}
