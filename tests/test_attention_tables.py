"""Tables of attention: the nearest sizes are chosen, and the ops run what they choose."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from fp4bench.evidence import Evidence
from fp4bench.export import make_table
from fp4bench.known import _of
from fp4bench.validation import from_table
from fp4kernels.attention import decoding, prefill
from fp4kernels.attention.cache import CacheShape, KVCache
from fp4kernels.attention.operands import prepare
from fp4kernels.attention.plain import PlainConfig
from fp4kernels.attention.plans import AttentionKey, AttentionPlan, Bucket
from fp4kernels.attention.problem import mask_named, segments_of
from fp4kernels.attention.recipes import attention_recipe
from fp4kernels.attention.simulate import simulate
from fp4kernels.cpu.attention import DecodeConfig
from fp4kernels.devices import Device, Toolchain
from fp4kernels.errors import TableError
from fp4kernels.layouts import Layout
from fp4kernels.tables import Table
from fp4kernels.variants import Candidate
from samples import race as product_race
from test_attention_tuning import DECODE, attention_race

KEY = AttentionKey("decode", 8, 2, 64, "nvfp4")


def of(**config: int) -> Candidate:
    values = DecodeConfig(**config)
    return Candidate("nvfp4", "cpp_attention_decode", Layout.CANONICAL, values)


PLAIN = Candidate("nvfp4", "torch_decode", Layout.CANONICAL, PlainConfig())
BUCKETS = (Bucket(1, 4096, of(rows=1)), Bucket(1, 32768, of(rows=2)), Bucket(64, 4096, of(rows=8)))


@pytest.fixture
def table(cpu: Device, toolchain: Toolchain) -> Table:
    if toolchain.compiler is None:
        pytest.skip("needs a C++ compiler")
    return Table(cpu, toolchain, {}, {}, {KEY: AttentionPlan(BUCKETS)})


@pytest.mark.parametrize(("batch", "keys", "rows"), [
    (1, 4096, 1), (1, 1, 1), (2, 9000, 1), (1, 20000, 2), (1, 1 << 20, 2), (9, 4096, 8), (64, 32768, 2 * 4),
    (8, 4096, 8),  # as far from 1 as from 64: the larger
])  # fmt: skip
def test_the_nearest_sizes_are_chosen(batch: int, keys: int, rows: int) -> None:
    assert AttentionPlan(BUCKETS).choose(batch, keys).config.values()["rows"] == rows


def test_races_of_both_operations_make_one_table() -> None:
    slower = attention_race(tuned=attention_race().default)
    other = attention_race(workload=dataclasses.replace(DECODE, keys=32768))
    rows = (slower, attention_race(), other, product_race())
    found = make_table(Evidence(rows, ()), ["test"])
    assert [*found.plans] == [("gemm", 48, 64, "mxfp4")]
    ((key, plan),) = found.attention.items()
    assert key == AttentionKey("decode", 32, 8, 128, "nvfp4")
    assert [(b.batch, b.keys) for b in plan.buckets] == [(8, 4096), (8, 32768)]
    assert plan.choose(8, 4096).config.values()["ahead"] == 2
    works = [work.key for work, _ in from_table(found)]
    assert works[1:] == [DECODE.key, dataclasses.replace(DECODE, keys=32768).key]
    assert [work.key for work, _ in _of(found)] == works


def test_a_table_survives_its_file(table: Table, tmp_path: Path) -> None:
    table.save(tmp_path / "table.json")
    assert Table.read(tmp_path / "table.json") == table
    assert Table.load(tmp_path / "table.json").attention == table.attention


def test_a_table_of_products_has_no_word_of_attention(table: Table, tmp_path: Path) -> None:
    dataclasses.replace(table, attention={}).save(tmp_path / "table.json")
    assert "attention" not in json.loads((tmp_path / "table.json").read_text())


def _bucket(entry: dict[str, Any], **changes: Any) -> None:
    entry["buckets"][0] |= changes


@pytest.mark.parametrize(("spoil", "message"), [
    (lambda e: e.pop("heads"), "it lacks 'heads'"),
    (lambda e: e.update(heads="8"), "three sizes and a recipe"),
    (lambda e: e.update(phase="chat"), "chat"),
    (lambda e: e.update(head_dim=80), "the head dim must be one of"),
    (lambda e: e.update(buckets=[]), "at least one bucket"),
    (lambda e: e.update(recipe="mxfp4"), "its recipe is another"),
    (lambda e: _bucket(e, batch=0), "a batch and keys of at least 1"),
    (lambda e: _bucket(e, variant="torch_expand", config={}, recipe="nvfp4"), "it is no attention"),
    (lambda e: _bucket(e, variant="torch_prefill", config={}), "it does prefill"),
    (lambda e: e["buckets"][0]["config"].update(tile=24), "a tile has"),
])  # fmt: skip
def test_a_damaged_table_says_what_is_wrong(
    table: Table, tmp_path: Path, spoil: Callable[[dict[str, Any]], Any], message: str
) -> None:
    path = tmp_path / "table.json"
    table.save(path)
    values = json.loads(path.read_text())
    spoil(values["attention"][0])
    path.write_text(json.dumps(values))
    with pytest.raises(TableError, match=message):
        Table.read(path)


def test_decoding_runs_what_the_table_chooses(table: Table) -> None:
    cache = KVCache(CacheShape(8, 16, 2, 2, 64), "nvfp4")
    generator = torch.Generator().manual_seed(0)
    k, v = (torch.randn(70, 2, 64, generator=generator) for _ in "kv")
    cache.append(k, v, [30, 40])
    q = torch.randn(2, 1, 8, 64, generator=generator)
    only = dataclasses.replace(table, attention={KEY: AttentionPlan((Bucket(1, 9, PLAIN),))})
    out, lse = decoding.decode(q, cache, table=only)
    plain = decoding.plain_decode(
        q, cache.keys, cache.values, cache.page_table, cache.lengths, cache.recipe, cache.order, 0, 0.125
    )  # fmt: skip
    assert torch.equal(out, plain[0])
    assert torch.equal(lse, plain[1])
    untuned = decoding.decode(q, cache)
    assert not torch.equal(out, untuned[0])  # another kernel
    torch.testing.assert_close(out, untuned[0], rtol=1e-4, atol=1e-5)
    compiled = torch.compile(lambda q: decoding.decode(q, cache, table=only)[0], backend="eager")
    assert torch.equal(compiled(q), out)
    with pytest.raises(TableError, match="no decode 8/2×64 mxfp4; tune it"):
        decoding.decode(q, KVCache(cache.shape, "mxfp4"), table=table)


def test_prefill_runs_what_the_table_chooses(table: Table) -> None:
    key = AttentionKey("prefill", 2, 2, 64, "nvfp4")
    chosen = dataclasses.replace(PLAIN, variant="torch_prefill")
    tuned = dataclasses.replace(table, attention={key: AttentionPlan((Bucket(1, 9, chosen),))})
    generator = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(1, 20, 2, 64, generator=generator, requires_grad=True) for _ in "qkv")
    ours, plain = (prefill.attention(q, k, v, mask="causal", table=t) for t in (tuned, None))
    how, mask = attention_recipe("nvfp4"), mask_named("causal")
    tokens = [x.detach().flatten(0, 1) for x in (q, k, v)]
    operands = prepare(tokens[0], tokens[1], tokens[2], segments_of(q, k), how, 0.125)
    wanted = simulate(operands, how, mask, 0.125, 64)
    assert torch.equal(ours[0], wanted[0].view(q.shape))
    assert torch.equal(ours[1][0], wanted[1])
    assert not torch.equal(ours[0], plain[0])  # another kernel
    torch.testing.assert_close(ours[1], plain[1], rtol=1e-5, atol=1e-5)
    ours[0].sum().backward()
    assert q.grad is not None
    with pytest.raises(TableError, match="no prefill 2/2×64 mxfp4"):
        prefill.attention(q, k, v, recipe="mxfp4", table=tuned)


def test_a_table_is_proven_again(table: Table) -> None:
    key = AttentionKey("decode", 4, 2, 64, "nvfp4")
    good = dataclasses.replace(table, attention={key: AttentionPlan((Bucket(1, 9, of(rows=2)),))})
    assert good.validate() == {}
