"""The sentence encoder: what it says, its batches, and the texts that it is given."""

import importlib.util
import json

import jax
import numpy as np
import pytest

from benchmarks import __main__ as demonstrate
from benchmarks import _encoder, _sentences

pytestmark = pytest.mark.usefixtures("loose")
TINY = _encoder.Sizes(layers=1, width=16, heads=2, hidden=32, words=100, length=32)
PACKAGES = (*_encoder.PACKAGES, "sentence_transformers")
WITHOUT = [name for name in PACKAGES if importlib.util.find_spec(name) is None]


@pytest.fixture(scope="module")
def tiny():
    return _encoder.small(TINY)


def test_vectors_have_length_one_and_padding_changes_nothing(tiny):
    embed = jax.jit(tiny.apply)
    ids = np.random.default_rng(0).integers(1, TINY.words, (3, 8), np.int32)
    short = np.pad(ids, ((0, 0), (0, 4)))
    found = np.asarray(embed(tiny.params, ids))
    assert found.shape == (3, TINY.width)
    np.testing.assert_allclose(np.linalg.norm(found, axis=1), 1, rtol=1e-5)
    np.testing.assert_allclose(embed(tiny.params, short), found, atol=1e-5)
    assert np.abs(embed(tiny.params, ids[:, ::-1]) - found).max() > 1e-3


def test_every_text_is_in_one_batch_and_few_shapes_are():
    rng = np.random.default_rng(0)
    tokens = [np.arange(1, 1 + n) for n in rng.integers(1, 33, 21)]
    seen = {}
    for rows, ids in _encoder.batches(tokens, 4, 32, 8):
        assert ids.shape[0] == 4
        assert ids.shape[1] in (8, 16, 24, 32)
        assert not ids[len(rows) :].any()
        assert max(len(tokens[i]) for i in rows) > ids.shape[1] - 8
        seen |= {i: row for i, row in zip(rows.tolist(), ids, strict=False)}
    assert seen.keys() == set(range(21))
    for i, row in seen.items():
        np.testing.assert_array_equal(row[row > 0], tokens[i])


def test_tokens_are_words_by_name(tiny):
    one, two = tiny.tokens(["Fit the model.", "the model, fit to data"], 4)
    np.testing.assert_array_equal(one, two[[2, 0, 1]])
    assert (len(one), len(two), two.dtype) == (3, 4, np.int32)
    assert 1 <= min(two) <= max(two) < TINY.words


def test_pairs_are_lines_and_what_follows_them():
    pairs = _sentences.scipy_pairs(600)
    assert len(set(pairs.lines)) == len(set(pairs.texts)) == 600
    assert pairs == _sentences.scipy_pairs(600)
    assert _sentences.scipy_pairs(5).lines == pairs.lines[:5]
    for line, text in zip(pairs.lines, pairs.texts, strict=True):
        assert "\n" not in line + text
        assert len(text) >= _sentences.SHORTEST
    with pytest.raises(ValueError, match=r"SciPy has \d+ such docstrings, not 100000"):
        _sentences.scipy_pairs(100_000)


def test_texts_are_drawn_anew_by_every_seed():
    one, two = (_sentences.sklearn_texts(256, seed) for seed in (0, 1))
    assert one == _sentences.sklearn_texts(256, 0)
    assert len(one) == len(two) == 256
    assert 100 < len(set(one) - set(two))
    assert min(map(len, one)) >= _sentences.SHORTEST


def test_without_its_packages_the_demonstration_says_how_to_get_them(
    monkeypatch, tmp_path, capsys
):
    monkeypatch.setattr(_encoder, "PACKAGES", ("no_such_package", "numpy"))
    assert _encoder.missing() == ["no_such_package"]
    arguments = ["--only", "sentence_encoder", "--out", str(tmp_path)]
    assert demonstrate.main(arguments) == 0
    told = json.loads((tmp_path / "results.json").read_text())["demos"]
    (row,) = told["sentence_encoder"]["rows"]
    assert row["measured"] == _encoder.ASK
    assert ".[encoder]" in capsys.readouterr().out
    assert {path.name for path in tmp_path.iterdir()} == {"index.html", "results.json"}


@pytest.mark.slow
@pytest.mark.skipif(bool(WITHOUT), reason="pip install -e '.[encoder]'")
@pytest.mark.filterwarnings("default")
def test_the_network_says_what_its_package_says():
    network, pairs = _encoder.load(), _sentences.scipy_pairs(5)
    texts = pairs.lines + pairs.texts
    ((order, ids),) = _encoder.batches(network.tokens(texts, 256), 10, 256)
    ours = np.asarray(jax.jit(network.apply)(network.params, ids))[np.argsort(order)]
    np.testing.assert_allclose(ours, _encoder.by_package(texts), atol=1e-4)
