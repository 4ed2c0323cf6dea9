"""Shrunk pairs that once loaded wrong values without a question, or called something safe that was not.

Each was found by ``make fuzz``.
"""

from ckptdoctor.testing import Group, History, Layer, Network
from ckptdoctor.testing.history import Added, Fuse, Gone, Order, Prefix, Relabel, Step, Transpose

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
    return Relabel(tuple((tuple(old.split(".")), tuple(new.split(".") if new else ())) for old, new in rows))


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

ATTENTION = ("q_proj", "k_proj", "v_proj", "out_proj")


def attention(width: int) -> Group:
    return part(*ATTENTION, layer=Layer("Linear", width, width))


def run_of(*nodes: Group | Layer) -> Group:
    return Group("Sequential", tuple((str(i), node) for i, node in enumerate(nodes)))


def fused(head: str) -> tuple[Step, ...]:
    """q, k and v below ``head`` in one tensor each."""
    return tuple(
        Fuse(tuple(f"{head}.{n}.{leaf}" for n in ATTENTION[:3]), f"{head}.qkv.{leaf}")
        for leaf in ("weight", "bias")
    )


def mlp() -> Group:
    return Group("Part", (("fc1", Layer("Linear", 3, 4)), ("fc2", Layer("Linear", 4, 3))))


SMALL = Layer("Linear", 2, 2)
TIED_QV = Network(run_of(SMALL, attention(2)), ties=(("1.q_proj.weight", "1.v_proj.weight"),))
BEFORE_ATTENTION = Group("Part", (("fc", Layer("Linear", 2, 4)), ("attn", attention(2))))
TURNED_FIRST = Transpose(("fc.weight", *(f"attn.{n}.weight" for n in ATTENTION)))
BIASES_TIED = Network(run_of(attention(2), Layer("Linear", 2, 4)), ties=(("0.q_proj.bias", "0.k_proj.bias"),))
SHARED_FC1 = Network(
    Group("Part", (("0", listed(mlp(), mlp())), ("3", Layer("MultiheadAttention kdim", 5, 3)))),
    shared=(("0.0.fc1", "0.1.fc1"),),
)
TWIN_BLOCKS = Group("Part", (("birch", listed(attention(5), attention(5))),))
TWIN_LISTS = Group("Part", (("hazel", run_of(*[mlp()] * 4)), ("onyx", run_of(*[mlp()] * 4))))
GATED_LIST = Group("Part", (("a", listed(gated(), gated())),))
COUNTED = Group("Part", (("x", Layer("BatchNorm2d", 3)), ("y", Layer("BatchNorm2d", 3))))

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
    "a tied module lost its matrix, and a stranger has its shape": (
        BIASES_TIED,
        History((Added("raven.weight", (2, 2)), Gone(("0.q_proj.weight",)))),
    ),
    "tied modules one level deeper in the file, and a tensor lost": (
        TIED_QV,
        History((relabel(("0", "body.0"), ("1", "body.1")), Gone(("body.0.weight",)))),
    ),
    "turned, then fused": (Network(BEFORE_ATTENTION), History((TURNED_FIRST, *fused("attn")))),
    "turned, then fused, beside a tie and under a wrapper": (
        Network(
            run_of(SMALL, SMALL, SMALL, Layer("Linear", 2, 4), attention(2)), ties=(("0.weight", "1.weight"),)
        ),
        History(
            (
                Transpose(tuple(f"{i}.weight" for i in range(4)) + tuple(f"4.{n}.weight" for n in ATTENTION)),
                *fused("4"),
                Prefix("module"),
            ),
            form="safetensors",
        ),
    ),
    "renumbered, with a layer that two blocks share": (
        SHARED_FC1,
        History((relabel(("0.0", "1"), ("0.1", "2")),), form="safetensors"),
    ),
    "a matrix lost, and a stranger at the top": (
        Network(run_of(gated())),
        History((Added("raven.weight", (2, 3)), Gone(("0.down_proj.weight",)))),
    ),
    "a network of one matrix: lost, and a stranger": (
        Network(Group("Part", (("only", Layer("EmbeddingBag", 3, 2)),))),
        History((Added("raven.weight", (5, 2)), Gone(("only.weight",)))),
    ),
    "a recurrent layer whose name is a line break lost a matrix": (
        Network(Group("Sequential", (("\n", Layer("GRU", 5, 2)),))),
        History((Added("raven.weight", (6, 5)), Gone(("\n.weight_ih_l0",)))),
    ),
    "blocks renumbered, one of them fused": (
        Network(Group("Part", (("block1", listed(attention(3), attention(3))),))),
        History((relabel(("block1.0", "1"), ("block1.1", "2")), *fused("block1.1"))),
    ),
    "two blocks that fit either place, and tensors lost": (
        Network(TWIN_BLOCKS),
        History(
            (
                relabel(("birch.0", "birch1"), ("birch.1", "birch2"), ("birch", "")),
                Gone(("birch1.q_proj.weight", "birch1.k_proj.bias")),
            )
        ),
    ),
    "twin lists, one of them a level higher": (
        Network(TWIN_LISTS),
        History((relabel(("onyx.1.fc1", "ember.fc1"), ("onyx.1.fc2", "ember.fc2"), ("hazel", "")),)),
    ),
    "gate and down exchanged by a transpose": (
        Network(Group("Part", (("a", run_of(gated())), ("b", SMALL)))),
        History(
            (
                relabel(("a.0.gate_proj", "gate"), ("a.0.down_proj", "down_linear")),
                Transpose(("a.0.gate.weight", "a.0.up_proj.weight", "a.0.down_linear.weight")),
            )
        ),
    ),
    "a tensor tied in three places": (
        Network(
            Group("Part", (("a", listed(SMALL, SMALL, SMALL)),)),
            ties=(("a.0.weight", "a.1.weight"), ("a.0.weight", "a.2.weight")),
        ),
        History(form="safetensors"),
    ),
    "a norm lost its mean, and the batches of another were claimed": (
        Network(COUNTED),
        History((relabel(("x", "raven"), ("y", "sable")), Gone(("raven.running_mean",)))),
    ),
}
