"""Layouts that shapes show only in part or not at all: the right repair where it can be known, else a question."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from torch import nn

from ckptdoctor import auto_load, diagnose
from ckptdoctor.errors import DecisionError, UndecidedError


class Conv1D(nn.Module):
    """GPT-2's linear layer, which keeps its weight as [in, out] (transformers' ``pytorch_utils.Conv1D``)."""

    def __init__(self, out: int, into: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(into, out) * 0.2)
        self.bias = nn.Parameter(torch.randn(out) * 0.1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x @ self.weight + self.bias


def layer(kind: str, out: int, into: int) -> nn.Module:
    return Conv1D(out, into) if kind == "conv1d" else nn.Linear(into, out)


class Attention(nn.Module):
    def __init__(self, kind: str, width: int) -> None:
        super().__init__()
        self.c_attn = layer(kind, 3 * width, width)
        self.c_proj = layer(kind, width, width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        q, k, v = self.c_attn(x).chunk(3, -1)
        return self.c_proj(torch.softmax(q @ k.transpose(-1, -2), -1) @ v)


class Mlp(nn.Module):
    def __init__(self, kind: str, width: int) -> None:
        super().__init__()
        self.c_fc, self.c_proj = layer(kind, 4 * width, width), layer(kind, width, 4 * width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.c_proj(torch.tanh(self.c_fc(x)))


class Gpt(nn.Module):
    def __init__(self, kind: str, width: int = 12) -> None:
        super().__init__()
        self.wte, self.wpe = nn.Embedding(30, width), nn.Embedding(9, width)
        self.h = nn.ModuleList(
            nn.ModuleDict(
                {
                    "ln_1": nn.LayerNorm(width),
                    "attn": Attention(kind, width),
                    "ln_2": nn.LayerNorm(width),
                    "mlp": Mlp(kind, width),
                }
            )
            for _ in range(2)
        )
        self.ln_f = nn.LayerNorm(width)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        x = self.wte(tokens) + self.wpe.weight[: tokens.shape[-1]]
        for block in self.h:
            x = x + block["attn"](block["ln_1"](x))
            x = x + block["mlp"](block["ln_2"](x))
        return self.ln_f(x)


TOKENS = torch.randint(0, 30, (2, 9), generator=torch.Generator().manual_seed(3))


@pytest.mark.parametrize("kinds", [("conv1d", "linear"), ("linear", "conv1d")])
def test_the_square_projection_of_gpt2_is_transposed_with_its_family(tmp_path, kinds):
    source, model = Gpt(kinds[0]), Gpt(kinds[1])
    torch.save(source.state_dict(), tmp_path / "gpt2.pth")
    auto_load(model, tmp_path / "gpt2.pth")
    assert torch.equal(model.h[1]["attn"].c_proj.weight, source.h[1]["attn"].c_proj.weight.T)
    with torch.no_grad():
        assert torch.allclose(source(TOKENS), model(TOKENS), atol=1e-5)


class Square(nn.Module):
    def __init__(self, kind: str, names: tuple[str, str]) -> None:
        super().__init__()
        for name in names:
            setattr(self, name, layer(kind, 6, 6))


def test_square_layers_alone_do_not_show_whether_they_are_transposed(tmp_path):
    torch.save(Square("linear", ("first", "second")).state_dict(), tmp_path / "square.pth")
    model = Square("conv1d", ("one", "two"))
    with pytest.raises(UndecidedError) as error:
        auto_load(model, tmp_path / "square.pth")
    assert "rename=" in str(error.value) or "op=" in str(error.value)


class Split(nn.Module):
    def __init__(self, width: int = 12) -> None:
        super().__init__()
        self.q_proj, self.k_proj = nn.Linear(width, width), nn.Linear(width, width)
        self.v_proj, self.o_proj = nn.Linear(width, width), nn.Linear(width, width)

    def forward(self, x: torch.Tensor, heads: int) -> torch.Tensor:
        return attend(self.q_proj(x), self.k_proj(x), self.v_proj(x), heads, self.o_proj)


class PerHead(nn.Module):
    """q, k and v of one head after the other, as in GPT-NeoX and BLOOM."""

    def __init__(self, width: int = 12) -> None:
        super().__init__()
        self.query_key_value, self.dense = nn.Linear(width, 3 * width), nn.Linear(width, width)

    def forward(self, x: torch.Tensor, heads: int) -> torch.Tensor:
        packed = self.query_key_value(x).unflatten(-1, (heads, 3, -1))
        q, k, v = (packed[..., i, :].flatten(-2) for i in range(3))
        return attend(q, k, v, heads, self.dense)


def attend(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, heads: int, out: nn.Module) -> torch.Tensor:
    q, k, v = (t.unflatten(-1, (heads, -1)).transpose(-2, -3) for t in (q, k, v))
    mixed = torch.softmax(q @ k.transpose(-1, -2), -1) @ v
    return out(mixed.transpose(-2, -3).flatten(-2))


def layers(make: type[nn.Module]) -> nn.ModuleDict:
    return nn.ModuleDict({"layers": nn.ModuleList(make() for _ in range(2))})


def test_a_fused_qkv_of_unknown_packing_is_asked_and_taken_apart_as_said(tmp_path):
    source, model = layers(PerHead), layers(Split)
    torch.save(source.state_dict(), tmp_path / "fused.pth")
    with pytest.raises(UndecidedError) as error:
        auto_load(model, tmp_path / "fused.pth")
    assert "packed" in str(error.value)
    heads = [f"op=layers.{{i}}.{n}_proj.*=regroup(4;1,1,1)|chunk(0,{i},3)" for i, n in enumerate("qkv")]
    decisions = [text.replace("{i}", "*") for text in heads]
    receipt = auto_load(model, tmp_path / "fused.pth", decisions=decisions)
    assert receipt.loaded == 16
    x = torch.randn(2, 5, 12)
    for a, b in zip(source["layers"], model["layers"], strict=True):
        with torch.no_grad():
            assert torch.allclose(a(x, 4), b(x, 4), atol=1e-5)


def test_an_op_that_does_not_fit_is_refused_with_shapes(tmp_path):
    source, model = layers(PerHead), layers(Split)
    torch.save(source.state_dict(), tmp_path / "fused.pth")
    with pytest.raises(DecisionError) as error:
        auto_load(model, tmp_path / "fused.pth", decisions=["op=layers.0.q_proj.weight=chunk(0,0,2)"])
    assert "layers.0.q_proj.weight" in str(error.value)
    assert "[12, 12]" in str(error.value)
    with pytest.raises(DecisionError, match="unknown op"):
        auto_load(model, tmp_path / "fused.pth", decisions=["op=layers.0.q_proj.weight=nonsense(3)"])
    with pytest.raises(DecisionError, match="matches no key"):
        auto_load(model, tmp_path / "fused.pth", decisions=["op=nowhere.*=copy"])


class Head(nn.Module):
    def __init__(self, classes: int) -> None:
        super().__init__()
        self.body, self.fc = nn.Linear(5, 7), nn.Linear(7, classes)


def test_lossy_ways_are_offered_with_the_flag_that_takes_them(tmp_path):
    source, model = Head(10), Head(4)
    torch.save(source.state_dict(), tmp_path / "head.pth")
    found = diagnose(model, tmp_path / "head.pth")
    flags = [h.command for d in found.diagnostics for h in d.helps]
    assert "--op 'fc.*=slice(0,0,4)'" in flags
    auto_load(model, tmp_path / "head.pth", decisions=["op=fc.*=take(0;7,2,9,0)"])
    assert torch.equal(model.fc.weight, source.fc.weight[[7, 2, 9, 0]])
    assert torch.equal(model.fc.bias, source.fc.bias[[7, 2, 9, 0]])
    assert torch.equal(model.body.weight, source.body.weight)


def test_rows_can_come_from_a_file_and_are_recorded_as_numbers(tmp_path):
    source, model = Head(10), Head(4)
    torch.save(source.state_dict(), tmp_path / "head.pth")
    rows = tmp_path / "rows.csv"
    rows.write_text("old row,name\n7,cat\n2,dog\n9,fox\n0,owl\n")
    found = diagnose(model, tmp_path / "head.pth", decisions=[f"op=fc.*=take(0;@{rows})"])
    assert found.plan is not None and found.plan.decision == ("op=fc.*=take(0;7,2,9,0)",)
    auto_load(model, tmp_path / "head.pth", decisions=[f"op=fc.*=take(0;@{rows})"])
    assert torch.equal(model.fc.bias, source.fc.bias[[7, 2, 9, 0]])
    with pytest.raises(DecisionError, match="cannot be read"):
        auto_load(model, tmp_path / "head.pth", decisions=["op=fc.*=take(0;@nowhere.csv)"])


class Positions(nn.Module):
    def __init__(self, side: int) -> None:
        super().__init__()
        self.pos_embed = nn.Parameter(torch.randn(1, 1 + side * side, 6))
        self.head = nn.Linear(6, 3)


def test_a_position_table_is_resampled_only_when_asked(tmp_path):
    source, model = Positions(4), Positions(8)
    torch.save(source.state_dict(), tmp_path / "vit.pth")
    found = diagnose(model, tmp_path / "vit.pth")
    assert found.verdict == "undecided"
    flag = next(h.command for d in found.diagnostics for h in d.helps if "resize_grid" in h.command)
    assert flag == "--op 'pos_embed=resize_grid(1;4,4;8,8)'"
    auto_load(model, tmp_path / "vit.pth", decisions=["op=pos_embed=resize_grid(1;4,4;8,8)"])
    grid = source.pos_embed[:, 1:].reshape(1, 4, 4, 6).permute(0, 3, 1, 2)
    due = nn.functional.interpolate(grid, size=(8, 8), mode="bicubic", align_corners=False)
    assert torch.allclose(model.pos_embed[:, 1:], due.permute(0, 2, 3, 1).flatten(1, 2), atol=1e-6)
    assert torch.equal(model.pos_embed[:, 0], source.pos_embed[:, 0])


def meta_llama(heads: int = 4, kv: int = 2, dim: int = 16) -> dict[str, torch.Tensor]:
    """The names and shapes of Meta's consolidated files, without ``rope.freqs``."""
    state = {"tok_embeddings.weight": torch.randn(20, dim)}
    for i in range(2):
        head = f"layers.{i}."
        sizes = {"wq": dim, "wk": dim // heads * kv, "wv": dim // heads * kv, "wo": dim}
        state |= {f"{head}attention.{n}.weight": torch.randn(rows, dim) for n, rows in sizes.items()}
        ffn = {"w1": (24, dim), "w2": (dim, 24), "w3": (24, dim)}
        state |= {f"{head}feed_forward.{n}.weight": torch.randn(s) for n, s in ffn.items()}
        state |= {f"{head}{n}.weight": torch.randn(dim) for n in ("attention_norm", "ffn_norm")}
    return state | {"norm.weight": torch.randn(dim), "output.weight": torch.randn(20, dim)}


class Llama(nn.Module):
    """The module names of transformers' LlamaForCausalLM."""

    def __init__(self, dim: int = 16, kv_rows: int = 8) -> None:
        super().__init__()

        def linear(out: int, into: int) -> nn.Linear:
            return nn.Linear(into, out, bias=False)

        def block() -> nn.ModuleDict:
            attention = {"q_proj": linear(dim, dim), "k_proj": linear(kv_rows, dim)}
            attention |= {"v_proj": linear(kv_rows, dim), "o_proj": linear(dim, dim)}
            mlp = {"gate_proj": linear(24, dim), "up_proj": linear(24, dim), "down_proj": linear(dim, 24)}
            return nn.ModuleDict(
                {
                    "self_attn": nn.ModuleDict(attention),
                    "mlp": nn.ModuleDict(mlp),
                    "input_layernorm": nn.RMSNorm(dim),
                    "post_attention_layernorm": nn.RMSNorm(dim),
                }
            )

        inner = {"embed_tokens": nn.Embedding(20, dim), "layers": nn.ModuleList(block() for _ in range(2))}
        self.model = nn.ModuleDict({**inner, "norm": nn.RMSNorm(dim)})
        self.lm_head = linear(20, dim)


def halves(rows: torch.Tensor, heads: int) -> torch.Tensor:
    """``permute`` of transformers' convert_llama_weights_to_hf.py."""
    out, into = rows.shape
    return rows.view(heads, out // heads // 2, 2, into).transpose(1, 2).reshape(out, into)


def test_llama_needs_its_head_count_and_asks_for_it(tmp_path):
    torch.save(meta_llama(), tmp_path / "consolidated.pth")
    model = Llama()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    with pytest.raises(UndecidedError) as error:
        auto_load(model, tmp_path / "consolidated.pth")
    assert "value=num_attention_heads=N" in str(error.value)
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())


def beside(folder: Path, state: dict[str, torch.Tensor]) -> list[str]:
    (folder / "params.json").write_text(json.dumps({"dim": 16, "n_heads": 4, "n_kv_heads": 2}))
    return []


def inside(folder: Path, state: dict[str, torch.Tensor]) -> list[str]:
    torch.save({"model": state, "args": {"n_heads": 4}}, folder / "consolidated.pth")
    return []


def flag(folder: Path, state: dict[str, torch.Tensor]) -> list[str]:
    return ["value=num_attention_heads=4"]


def frequencies(folder: Path, state: dict[str, torch.Tensor]) -> list[str]:
    torch.save(state | {"rope.freqs": torch.randn(2)}, folder / "consolidated.pth")
    return []


@pytest.mark.parametrize("known", [beside, inside, flag, frequencies])
def test_llama_with_grouped_queries_is_permuted_by_its_own_head_counts(tmp_path, known):
    state = meta_llama()
    torch.save(state, tmp_path / "consolidated.pth")
    decisions = known(tmp_path, state)
    model = Llama()
    auto_load(model, tmp_path / "consolidated.pth", decisions=decisions)
    loaded = model.state_dict()
    for i in range(2):
        wq, wk = (state[f"layers.{i}.attention.{n}.weight"] for n in ("wq", "wk"))
        assert torch.equal(loaded[f"model.layers.{i}.self_attn.q_proj.weight"], halves(wq, 4))
        assert torch.equal(loaded[f"model.layers.{i}.self_attn.k_proj.weight"], halves(wk, 2))
        gate = state[f"layers.{i}.feed_forward.w1.weight"]
        assert torch.equal(loaded[f"model.layers.{i}.mlp.gate_proj.weight"], gate)


def test_head_counts_that_contradict_each_other_are_asked(tmp_path):
    torch.save(meta_llama() | {"rope.freqs": torch.randn(2)}, tmp_path / "consolidated.pth")
    (tmp_path / "params.json").write_text(json.dumps({"n_heads": 8}))
    with pytest.raises(UndecidedError) as error:
        auto_load(Llama(), tmp_path / "consolidated.pth")
    assert "num_attention_heads" in str(error.value)


def test_the_models_own_attributes_are_facts(tmp_path):
    torch.save(meta_llama(), tmp_path / "consolidated.pth")
    model = Llama()
    model.num_attention_heads = 4
    auto_load(model, tmp_path / "consolidated.pth")


@pytest.mark.parametrize("text", ["value=heads_of_state=3", "value=num_attention_heads=many", "op=x"])
def test_decisions_that_cannot_be_read_say_why(tmp_path, text):
    torch.save(meta_llama(), tmp_path / "consolidated.pth")
    with pytest.raises(DecisionError, match=r"known are|no number|written op="):
        auto_load(Llama(), tmp_path / "consolidated.pth", decisions=[text])


class Experts(nn.Module):
    """A small mixture of experts: a list of gated networks, or one tensor a matrix."""

    def __init__(self, stacked: bool, count: int = 4, width: int = 8, inner: int = 12) -> None:
        super().__init__()
        if stacked:
            self.gate_up_proj = nn.Parameter(torch.randn(count, 2 * inner, width))
            self.down_proj = nn.Parameter(torch.randn(count, width, inner))
        else:
            for e in range(count):
                expert = {n: nn.Linear(width, inner, bias=False) for n in ("gate_proj", "up_proj")}
                expert["down_proj"] = nn.Linear(inner, width, bias=False)
                self.add_module(str(e), nn.ModuleDict(expert))

    def forward(self, x: torch.Tensor, e: int) -> torch.Tensor:
        if hasattr(self, "gate_up_proj"):
            gate, up = (x @ self.gate_up_proj[e].T).chunk(2, -1)
            return (torch.sigmoid(gate) * up) @ self.down_proj[e].T
        expert = self.get_submodule(str(e))
        return expert["down_proj"](torch.sigmoid(expert["gate_proj"](x)) * expert["up_proj"](x))


def mixture(stacked: bool) -> nn.ModuleDict:
    blocks = (
        nn.ModuleDict({"router": nn.Linear(8, 4, bias=False), "experts": Experts(stacked)}) for _ in range(2)
    )
    return nn.ModuleDict({"layers": nn.ModuleList(blocks)})


@pytest.mark.parametrize("stacked", [False, True])
def test_experts_are_stacked_and_taken_apart(tmp_path, stacked):
    source, model = mixture(stacked), mixture(not stacked)
    torch.save(source.state_dict(), tmp_path / "moe.pth")
    auto_load(model, tmp_path / "moe.pth")
    x = torch.randn(3, 8)
    for a, b in zip(source["layers"], model["layers"], strict=True):
        for e in range(4):
            with torch.no_grad():
                assert torch.allclose(a["experts"](x, e), b["experts"](x, e), atol=1e-5)


def test_one_layer_that_has_heads_does_not_speak_for_the_others(tmp_path):
    class PoolingAttention(nn.Module):
        num_attention_heads = 8

        def __init__(self) -> None:
            super().__init__()
            self.num_attention_heads = 8

    torch.save(meta_llama(), tmp_path / "consolidated.pth")
    model = Llama()
    model.pool = PoolingAttention()
    with pytest.raises(UndecidedError, match="num_attention_heads"):
        auto_load(model, tmp_path / "consolidated.pth")
