"""The table of a deep network: parts with their sums, repeated layers as one."""

import itertools
import re

import jax
import numpy as np
import pytest

from maskjax import report, where
from tests import trees


def shapes(tree):
    return jax.tree.map(
        lambda s: jax.ShapeDtypeStruct(s, "float32"),
        tree,
        is_leaf=lambda x: isinstance(x, tuple),
    )


def dense(ins, outs):
    return {"bias": (outs,), "kernel": (ins, outs)}


def norm(width):
    return {"bias": (width,), "scale": (width,)}


def gpt2(d=768, layers=12):
    """148 parameters, with the names that Flax gives them."""

    def block():
        attn = {"c_attn": dense(d, 3 * d), "c_proj": dense(d, d)}
        mlp = {"c_fc": dense(d, 4 * d), "c_proj": dense(4 * d, d)}
        return {"attn": attn, "ln_1": norm(d), "ln_2": norm(d), "mlp": mlp}

    tables = {"wpe": {"embedding": (1024, d)}, "wte": {"embedding": (50257, d)}}
    blocks = {str(i): block() for i in range(layers)}
    return shapes({"transformer": {"h": blocks, "ln_f": norm(d), **tables}})


def bert(d=768, layers=3):
    """Long names, five deep."""

    def block():
        attention = {name: dense(d, d) for name in ("key", "query", "value")}
        out = {"LayerNorm": norm(d), "dense": dense(d, d)}
        return {
            "attention": {"output": out, "self": attention},
            "intermediate": {"dense": dense(d, 4 * d)},
            "output": {"LayerNorm": norm(d), "dense": dense(4 * d, d)},
        }

    rows = {"position": 512, "token_type": 2, "word": 30522}
    embeddings = {
        f"{name}_embeddings": {"embedding": (n, d)} for name, n in rows.items()
    }
    blocks = {str(i): block() for i in range(layers)}
    parts = {"embeddings": embeddings, "encoder": {"layer": blocks}}
    return shapes({"bert": {**parts, "pooler": {"dense": dense(d, d)}}})


def billions(d=6144, layers=5):
    """Numbers of ten digits."""

    def block():
        ffn = {"down": (11008, d), "gate": (d, 11008), "up": (d, 11008)}
        attn = {f"{name}_proj": {"kernel": (d, d)} for name in "kqvo"}
        mlp = {f"{name}_proj": {"kernel": shape} for name, shape in ffn.items()}
        norms = {"post_attention_layernorm": {"weight": (d,)}}
        return {"mlp": mlp, "self_attn": attn, **norms}

    blocks = [block() for _ in range(layers)]
    ends = {"embed_tokens": {"embedding": (32000, d)}, "lm_head": dense(d, 32000)}
    return shapes({"model": {"layers": blocks, **ends}})


def resnet():
    """Numbers in names, blocks of several shapes, ten of them."""
    found, ins = {"conv_init": {"kernel": (7, 7, 3, 8)}}, 8
    for i in range(12):
        outs = 8 * 2 ** (i // 5)
        found[f"Block_{i}"] = {
            "BatchNorm_0": norm(outs),
            "Conv_0": {"kernel": (3, 3, ins, outs)},
            "Conv_1": {"kernel": (3, 3, outs, outs)},
        }
        ins = outs
    return shapes(found | {"head": dense(ins, 10)})


NETWORKS = {"bert": bert, "billions": billions, "gpt2": gpt2, "resnet": resnet}


def masked(params, seed=0):
    """Units of kernels, some of them removed; in every layer another number."""
    rng = np.random.default_rng(seed)

    def one(path, leaf):
        if path[-1].key != "kernel":
            return None
        shape = (1,) * (leaf.ndim - 1) + leaf.shape[-1:]
        return rng.random(shape) < rng.uniform(0.2, 0.8)

    return jax.tree_util.tree_map_with_path(one, params)


def expanded(label):
    """The parts of paths that `block_[0..2,5]/kernel` stands for."""
    choices = []
    for piece in re.split(r"(\[[\d.,]+\])", label):
        if not re.fullmatch(r"\[[\d.,]+\]", piece):
            choices.append([piece])
            continue
        runs = (run.partition("..") for run in piece[1:-1].split(","))
        runs = [range(int(low), int(high or low) + 1) for low, _, high in runs]
        choices.append([str(n) for n in itertools.chain(*runs)])
    return ["".join(one) for one in itertools.product(*choices)]


def lines(text):
    """(indent, label, words) of each row but the title and the last two."""
    for line in text.splitlines()[1:-2]:
        label, *words = re.split(r"  +", line.strip())
        yield (len(line) - len(line.lstrip())) // 2, label, words


def bottom(text):
    """(paths, words) of each row that has none below it."""
    rows, above = [*lines(text)], []
    for i, (indent, label, words) in enumerate(rows):
        above = [*above[:indent], label]
        if i + 1 == len(rows) or rows[i + 1][0] <= indent:
            yield expanded("/".join(above)), words


def number(word):
    return int(word.replace(",", ""))


def at(text, title):
    """Where a column is, from the right."""
    titles = re.split(r"  +", text.splitlines()[0])
    return titles.index(title) - len(titles)


@pytest.mark.parametrize("name", NETWORKS)
def test_a_tree_tells_each_parameter_once_in_80_columns(name):
    """Its rows, read as paths, are all parameters, and their numbers exact."""
    params = NETWORKS[name]()
    mask = masked(params)
    text = report.table(mask, params)
    assert max(map(len, text.splitlines())) <= 80
    assert len(text.splitlines()) <= 45
    flat = report.table(mask, params, tree=False).splitlines()
    told = {}
    for line in flat[1:-1]:
        path, _, kept, size, *_ = re.split(r"  +", line)
        told[path] = kept, number(size)
    found, kept_at, total_at = [], at(text, "kept"), at(text, "total")
    for paths, words in bottom(text):
        found += paths
        kept, sizes = zip(*(told[path] for path in paths), strict=True)
        assert number(words[total_at]) == sum(sizes)
        if "-" in kept:  # of all that share a row
            assert {*kept} == {words[kept_at]}
            continue
        kept = [number(n) for n in kept]
        assert number(words[kept_at]) == sum(kept)
        densities = [k / n for k, n in zip(kept, sizes, strict=True)]
        assert words[at(text, "density")] == f"{sum(kept) / sum(sizes):.4f}"
        span = f"{min(densities):.2f}-{max(densities):.2f}"
        assert words[at(text, "layers")] == (span if len(kept) > 1 else "-")
    assert sorted(found) == sorted(told)
    _, all_kept, all_size, *_ = re.split(r"  +", flat[-1])
    masked_row, every_row = (re.split(r"  +", r) for r in text.splitlines()[-2:])
    assert masked_row[:3] == ["all masked", all_kept, all_size]
    alone = sum(size for kept, size in told.values() if kept == "-")
    assert every_row[0] == "all parameters"
    assert number(every_row[1]) == number(all_kept) + alone
    assert number(every_row[2]) == sum(size for _, size in told.values())


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("depth", [None, 1, 2, 3])
def test_a_part_is_the_sum_of_what_is_below_it(name, depth):
    params = NETWORKS[name]()
    text = report.table(masked(params), params, tree=True, depth=depth)
    rows, columns = [*lines(text)], (at(text, "kept"), at(text, "total"))
    sums = {}
    for i, (indent, _, words) in enumerate(rows):
        below = []
        for deeper, _, others in rows[i + 1 :]:
            if deeper <= indent:
                break
            below += [others] if deeper == indent + 1 else []
        counted = [w for w in below if w[columns[0]] != "-"] or below
        for column in columns if below else ():
            numbers = [number(w[column]) for w in counted if w[column] != "-"]
            sums[i, column] = sum(numbers)
            assert words[column] == (f"{sum(numbers):,}" if numbers else "-")
    assert bool(sums) == (depth != 1)
    if depth is not None:  # no path is deeper
        assert all(p.count("/") < depth for paths, _ in bottom(text) for p in paths)


@pytest.mark.parametrize("name", trees.NAMES)
def test_every_parameter_of_every_framework_is_in_the_tree(name):
    params = jax.tree.map(np.asarray, trees.make(name))
    mask = jax.tree.map(
        lambda w: np.ones(w.shape, bool) if w.dtype == np.float32 else None, params
    )
    found = [
        p for paths, _ in bottom(report.table(mask, params, tree=True)) for p in paths
    ]
    flat = report.table(mask, params, tree=False).splitlines()[1:-1]
    assert sorted(found) == sorted(re.split("  +", line)[0] for line in flat)


def test_only_equal_layers_share_a_row_in_the_order_of_their_numbers():
    names = ["0", "1", "2", "10", "11", "3", "4"]
    layers = {name: {"w": (2, 3)} for name in names}
    layers["2"] = {"w": (3, 3)}  # another shape
    layers["4"] = {"w": (2, 3), "b": (3,)}  # one more parameter
    params = shapes({"net": layers, "h2_x": {"w": (1,)}, "h5_x": {"w": (1,)}})
    mask = jax.tree.map(lambda s: np.ones(s.shape, bool), params)
    mask["net"]["3"]["w"] = None  # without a mask
    labels = [label for _, label, _ in lines(report.table(mask, params, tree=True))]
    assert labels == [
        "h[2,5]_x/w", "net", "[0..1,10..11]/w", "2/w", "3/w", "4/b", "4/w",
    ]  # fmt: skip
    apart = report.table(mask, params, tree=True, layers=True)
    labels = [label for _, label, _ in lines(apart)]
    assert labels[:4] == ["h2_x/w", "h5_x/w", "net", "0/w"]
    assert len(labels) == 11


def test_layers_of_a_stack_in_a_tree():
    kept = np.arange(24).reshape(3, 2, 4) >= 10
    params = shapes({"net": {"a": {"w": (3, 2, 4)}, "b": {"c": (2,)}, "d": (2,)}})
    mask = {"net": {"a": {"w": kept}, "b": {"c": None}, "d": None}}
    told = where.matching("w", axes="stack inputs outputs")
    (row,) = [
        r
        for r in lines(report.table(mask, params, where=told, tree=True))
        if r[1] == "net/a/w"
    ]
    assert row[2] == ["3 x (2 x 4)", "14", "24", "0.5833", "0.00-1.00"]
    how = {"where": told, "tree": True, "layers": True}
    rows = [
        (label, words) for _, label, words in lines(report.table(mask, params, **how))
    ]
    assert rows[:3] == [
        ("net/a/w[0]", ["2 x 4", "0", "8", "0.0000"]),
        ("net/a/w[1]", ["2 x 4", "6", "8", "0.7500"]),
        ("net/a/w[2]", ["2 x 4", "8", "8", "1.0000"]),
    ]


def test_many_parameters_are_a_tree_unless_a_table_is_asked_for():
    params = shapes([(2, 2)] * 40)
    mask = [np.ones((2, 2), bool)] * 40
    assert len(report.table(mask, params).splitlines()) == 42
    params, mask = [*params, params[0]], [*mask, mask[0]]
    assert len(report.table(mask, params).splitlines()) == 4
    assert len(report.table(mask, params, tree=False).splitlines()) == 43
    assert (
        len(
            report.table(
                mask,
                params,
                layers=True,
                where=where.matching("", axes="inputs outputs"),
            ).splitlines()
        )
        == 43
    )
    assert "all parameters" in report.table(mask[:2], params[:2], depth=1)


def test_a_tree_tells_operations_and_zeros():
    params = {"net": [{"w": np.ones((2, 2), "float32")} for _ in range(2)]}
    params["net"][1]["w"][0, 0] = 0
    params["b"] = np.ones(3, "float32")
    mask = {"net": [{"w": np.array([[True, False]])}] * 2, "b": None}
    flops = {"net": [{"w": 100}, {"w": 200}], "b": 7}
    text = report.table(mask, params, flops, tree=True)
    assert [line.split() for line in text.splitlines()] == [
        "parameter shape kept total density flops kept flops".split(),
        "b 3 - 3 - - 7".split(),
        "net/[0..1]/w 2 x 2 4 8 0.5000 150 300".split(),
        "all masked 4 8 0.5000 150 300".split(),
        "all parameters 7 11 0.6364 157 307".split(),
        "The mask keeps 4 entries, and 7 of its parameters are not zero.".split(),
        "`tree=False` tells which.".split(),
    ]
    applied = jax.tree.map(lambda p: p * np.array([1, 0], "float32"), params["net"])
    applied[1]["w"][0, 0] = 1
    text = report.table(mask, params | {"net": applied}, tree=True)
    assert "not zero" not in text


def test_a_tree_without_a_mask_has_sizes():
    params = shapes({"a": {"b": (2,), "c": {"d": (3,), "e": (4,)}}})
    mask = jax.tree.map(lambda _: None, params)
    rows = [line.split() for line in report.table(mask, params, tree=True).splitlines()]
    assert rows[1:] == [
        "a - 9 -".split(),
        "b 2 - 2 -".split(),
        "c/d 3 - 3 -".split(),
        "c/e 4 - 4 -".split(),
        "all masked - 0 -".split(),
        "all parameters 9 9 1.0000".split(),
    ]


def test_depth_has_to_be_a_level():
    fn = "`maskjax.report.table`"
    mask, params = {"w": None}, {"w": np.ones(3)}
    with pytest.raises(ValueError, match=f"{fn} needs `depth` of at least 1, got 0"):
        report.table(mask, params, depth=0)
    with pytest.raises(ValueError, match=f"{fn} needs a tree for `depth`, got `tree=F"):
        report.table(mask, params, depth=1, tree=False)
