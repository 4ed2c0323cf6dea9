"""Hypothesis strategies for networks: small widths, so that tensors of equal shape are common."""

from __future__ import annotations

from collections.abc import Sequence

from hypothesis import assume
from hypothesis import strategies as st

from ckptdoctor.testing.recipes import Group, Layer, Network, Style

WIDTHS = (2, 3, 4, 5)

# Layers by how often they are drawn: what most networks are made of, and everything else.
COMMON = (
    "Linear", "Linear without bias", "Conv2d", "Conv2d 1x1", "BatchNorm2d", "LayerNorm",
    "Embedding", "ReLU", "Dropout",
)  # fmt: skip
RARE = (
    "Bilinear", "Conv1d", "Conv3d", "Conv2d depthwise", "ConvTranspose1d", "ConvTranspose2d",
    "ConvTranspose3d", "BatchNorm1d", "BatchNorm2d plain", "BatchNorm3d", "InstanceNorm2d",
    "GroupNorm", "RMSNorm", "EmbeddingBag", "square table", "LSTM", "LSTM projected",
    "GRU", "RNN", "GRUCell", "MultiheadAttention", "MultiheadAttention bias", "Numbers", "Experts",
    "Extra tensor", "MultiheadAttention kdim", "TransformerEncoder", "weight_norm", "weight_norm old",
    "spectral_norm", "spectral_norm old", "PReLU", "Identity", "Bare", "gains", "empty", "complex",
    "Buffers", "Extra", "ParameterList", "ParameterDict",
)  # fmt: skip
CASTABLE = frozenset({"Linear", "Linear without bias", "LayerNorm", "Bare", "ParameterList", "Embedding"})

# What people call the parts of a network, and names that say nothing.
WORDS = (
    "stem", "body", "head", "neck", "features", "classifier", "backbone", "encoder", "decoder",
    "embed", "proj", "extra", "aux", "final", "norm", "fc", "conv", "layers", "blocks", "trunk",
    "pool", "out", "upsample",
)  # fmt: skip
NEUTRAL = (
    "amber", "birch", "cobalt", "dune", "ember", "flint", "grove", "hazel", "iris", "jade", "lotus", "onyx",
)  # fmt: skip
ODD = (
    "module", "model", "net", "_module", "weight_", "a-b", "with space", "0x", "größe", "编码器", "*", "**",
    "{i}", "{0,2}", "[0]", "?", "\\", '"', "'", "=", "#", "ema", "layer10", "layer1", "conv1_2",
    "a" * 300, "\u202e", "\n", "-x",
)  # fmt: skip
CLASS_WORDS = {
    "Linear": "fc", "Linear without bias": "fc", "Conv1d": "conv", "Conv2d": "conv", "Conv2d 1x1": "conv",
    "Conv3d": "conv", "BatchNorm1d": "bn", "BatchNorm2d": "bn", "LayerNorm": "ln", "GroupNorm": "gn",
    "Embedding": "embed", "ReLU": "relu", "Dropout": "drop", "LSTM": "lstm", "GRU": "gru", "PReLU": "prelu",
}  # fmt: skip


def layers(only: Sequence[str] = ()) -> st.SearchStrategy[Layer]:
    """One layer; two of three are of the common kinds."""
    kinds = (
        st.sampled_from(only)
        if only
        else st.sampled_from(COMMON) | st.sampled_from(COMMON) | st.sampled_from(RARE)
    )
    return st.builds(_layer, kinds, st.sampled_from(WIDTHS), st.sampled_from(WIDTHS), st.integers(0, 11))


def _layer(kind: str, width: int, other: int, chance: int) -> Layer:
    dtype = {0: "float64", 1: "bfloat16", 2: "float16"}.get(chance, "")
    return Layer(kind, width, other, dtype if kind in CASTABLE else "")


def attention(w: int) -> Group:
    """Four projections of one shape, as most code names them."""
    names = ("q_proj", "k_proj", "v_proj", "out_proj")
    return Group("Part", tuple((name, Layer("Linear", w, w)) for name in names))


def mlp(w: int, v: int) -> Group:
    """Two linear layers and what stands between them."""
    rows = ("fc1", Layer("Linear", w, v)), ("act", Layer("ReLU")), ("fc2", Layer("Linear", v, w))
    return Group("Part", rows)


def gated(w: int, v: int) -> Group:
    """A gated feed-forward: gate and up have one shape."""
    made = [(n, Layer("Linear without bias", *d)) for n, d in _GATED(w, v)]
    return Group("Part", tuple(made))


def _GATED(w: int, v: int) -> tuple[tuple[str, tuple[int, int]], ...]:
    return ("gate_proj", (w, v)), ("up_proj", (w, v)), ("down_proj", (v, w))


def pre_norm(w: int, v: int) -> Group:
    """A transformer block: two norms of one shape."""
    rows = (
        ("norm1", Layer("LayerNorm", w)),
        ("attn", attention(w)),
        ("norm2", Layer("LayerNorm", w)),
        ("mlp", mlp(w, v)),
    )
    return Group("Residual", rows)


def basic(w: int, v: int) -> Group:
    """A ResNet block; with w == v its convolutions and its norms are of one shape each."""
    rows: list[tuple[str, Layer | Group]] = [
        ("conv1", Layer("Conv2d", w, v)),
        ("bn1", Layer("BatchNorm2d", v)),
        ("conv2", Layer("Conv2d", v, v)),
        ("bn2", Layer("BatchNorm2d", v)),
    ]
    if w != v:
        down = Layer("Conv2d 1x1", w, v), Layer("BatchNorm2d", v)
        rows.append(("downsample", Group("Sequential", tuple(_numbered(down)))))
    return Group("Residual", tuple(rows))


def experts(w: int, v: int) -> Group:
    """A mixture of two experts, each a gated feed-forward of its own, and what chooses among them."""
    listed = Group("ModuleList", tuple(_numbered([gated(w, v)] * 2)))
    return Group("Part", (("router", Layer("Linear without bias", w, 2)), ("experts", listed)))


BLOCKS = (lambda w, v: attention(w), mlp, gated, pre_norm, basic, experts)


def _numbered(nodes: Sequence[Layer | Group]) -> list[tuple[str, Layer | Group]]:
    return [(str(i), node) for i, node in enumerate(nodes)]


@st.composite
def repeated(draw: st.DrawFn) -> Group:
    """Two to four equal blocks in a list."""
    block = draw(st.sampled_from(BLOCKS))(draw(st.sampled_from(WIDTHS)), draw(st.sampled_from(WIDTHS)))
    count = draw(st.integers(2, 4))
    return Group(draw(st.sampled_from(("ModuleList", "Sequential"))), tuple(_numbered([block] * count)))


@st.composite
def groups(draw: st.DrawFn, inner: st.SearchStrategy[Layer | Group], odd: bool) -> Group:
    """A group of one to five nodes under names of one manner."""
    nodes = draw(st.lists(inner, min_size=1, max_size=5))
    manner = draw(st.sampled_from(("index", "class", "words", "neutral", *(("odd",) if odd else ()))))
    if manner == "index":
        style: Style = draw(st.sampled_from(("Sequential", "Sequential", "ModuleList")))
        return Group(style, tuple(_numbered(nodes)))
    styles: tuple[Style, ...] = ("Part", "Part", "Residual", "Sequential", "ModuleDict")
    names = _class_names(nodes) if manner == "class" else _some(draw, manner, len(nodes))
    return Group(draw(st.sampled_from(styles)), tuple(zip(names, nodes, strict=True)))


def _some(draw: st.DrawFn, manner: str, count: int) -> list[str]:
    pool = {"words": WORDS, "neutral": NEUTRAL, "odd": ODD}[manner]
    return draw(st.lists(st.sampled_from(pool), min_size=count, max_size=count, unique=True))


def _class_names(nodes: Sequence[Layer | Group]) -> list[str]:
    """conv1, bn1, conv2 ...: the usual attribute names."""
    counts: dict[str, int] = {}
    names = []
    for node in nodes:
        word = CLASS_WORDS.get(node.kind, "layer") if isinstance(node, Layer) else "block"
        counts[word] = counts.get(word, 0) + 1
        names.append(f"{word}{counts[word]}")
    return names


@st.composite
def networks(draw: st.DrawFn, *, odd: bool = True) -> Network:
    """A network of one to about thirty layers. ``odd``: attribute names that no tool expects too.

    At least one of its tensors is in the state dict. Ties and shared modules are drawn last.
    """
    blocks = st.builds(lambda b, w, v: b(w, v), st.sampled_from(BLOCKS), *[st.sampled_from(WIDTHS)] * 2)
    leaf = layers() | layers() | blocks
    second = leaf | leaf | repeated() | groups(leaf, odd)
    root = draw(groups(second, odd).filter(lambda g: g.style != "Residual"))
    network = Network(Group("Part" if root.style == "ModuleDict" else root.style, root.children))
    assume(any(hasattr(v, "shape") for v in network.build().state_dict().values()))
    return draw(tied(network)) if draw(st.integers(0, 3)) == 0 else network


@st.composite
def tied(draw: st.DrawFn, network: Network) -> Network:
    """The network with one tie or one shared module, where it has two of a kind."""
    model = network.build()
    if draw(st.booleans()):
        kinds: dict[object, list[str]] = {}
        for path, leaf in model.named_modules():
            if path and not list(leaf.children()) and list(leaf.parameters(recurse=False)):
                shapes = tuple(
                    (k, tuple(v.shape)) for k, v in leaf.state_dict().items() if hasattr(v, "shape")
                )
                kinds.setdefault((type(leaf), shapes), []).append(path)
        pair = _two(draw, list(kinds.values()))
        return Network(network.root, shared=(pair,)) if pair else network
    found: dict[object, list[str]] = {}
    for key, parameter in model.named_parameters():
        plain = not any(word in key for word in ("parametrizations", "weight_g", "weight_v", "weight_orig"))
        if plain and parameter.numel() and "PReLU" not in key:
            found.setdefault((tuple(parameter.shape), parameter.dtype), []).append(key)
    pair = _two(draw, [keys for keys in found.values() if not any(k.split(".")[-1].isdigit() for k in keys)])
    return Network(network.root, ties=(pair,)) if pair else network


def _two(draw: st.DrawFn, rows: list[list[str]]) -> tuple[str, str] | None:
    rows = [row for row in rows if len(row) > 1]
    if not rows:
        return None
    first, second = sorted(
        draw(st.sets(st.sampled_from(range(len(row := draw(st.sampled_from(rows))))), min_size=2, max_size=2))
    )
    return row[first], row[second]
