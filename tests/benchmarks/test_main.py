"""The command line: what it refuses, what it writes, and what it says meanwhile."""

import ast
import base64
import inspect
import io
import json
import math
import os
import re
import signal
import struct

import jax
import numpy as np
import optax
import pytest
import rich.console
from matplotlib.figure import Figure

import maskjax
from benchmarks import __main__ as demonstrate
from benchmarks import _compiling, _data, _registry, _report, _rows, _train
from benchmarks.demos import DEMOS

pytestmark = pytest.mark.usefixtures("loose")


def _arrays(**others):
    """The arrays of a small file that is as it should be, but for those given."""
    images, labels = np.zeros((6, 28, 28), np.uint8), np.arange(6, dtype=np.uint8)
    arrays = {"x_train": images, "y_train": labels, "x_test": images, "y_test": labels}
    return arrays | others


def _saved(path, arrays):
    np.savez_compressed(path, **arrays)
    return path


def _refusal(path, out, capsys):
    """What is said of a data file, which ends with status 2 and leaves nothing."""
    assert demonstrate.main(["--data", str(path), "--out", str(out / "out")]) == 2
    assert not (out / "out").exists()
    said = capsys.readouterr()
    assert not said.out
    assert f"Can't use the data file {path}." in said.err
    assert "Expected Keras' mnist.npz" in said.err
    return said.err.split("Found:\n")[1]


def test_list_and_help_name_every_demonstration_and_its_paper(capsys):
    assert demonstrate.main(["--list"]) == 0
    listed = capsys.readouterr().out.splitlines()
    assert listed == [f"{d.name}: {d.title}, {d.seconds:.0f} s" for d in DEMOS]
    with pytest.raises(SystemExit, match="0"):
        demonstrate.main(["--help"])
    said = capsys.readouterr().out
    assert all(f"  {line}\n" in said for line in listed)


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["--only", "weather"], "invalid choice: 'weather'"),
        (["--jobs", "0"], "at least 1, got 0"),
        (["--tasks", "1"], "at least 2 tasks, got 1"),
        (["--quick", "--full"], "not allowed with argument"),
        (["--quick", "--record"], "--record is not allowed with --quick"),
        (["--only", "magnitude", "--tasks", "4"], "--tasks is for supsup, packnet"),
        (["--only", "supsup", "--omniglot", "x"], "--omniglot is for meta_ticket"),
    ],
)
def test_wrong_arguments_are_refused(arguments, complaint, capsys):
    with pytest.raises(SystemExit, match="2"):
        demonstrate.main(arguments)
    said = capsys.readouterr().err
    assert complaint in said
    assert "weather" not in arguments or all(demo.name in said for demo in DEMOS)


@pytest.mark.parametrize(
    ("content", "found"),
    [
        (None, "no such file"),
        ("a folder", "a folder"),
        (b"", "not readable"),
        (b"not an archive", "not readable: no .npz archive"),
        (b"\x93NUMPY of version 1.0", "a single array"),
        (struct.pack("<9d", *[1] * 9), "not readable"),
        (0.0, "not readable"),
        (0.3, "not readable"),
        (0.95, "not readable"),
    ],
)
def test_a_file_that_is_no_archive_is_refused(content, found, tmp_path, capsys):
    path = tmp_path / "data.npz"
    if content == "a folder":
        path.mkdir()
    elif isinstance(content, float):  # only so much of a good file
        whole = _saved(path, _arrays()).read_bytes()
        path.write_bytes(whole[: int(content * len(whole))])
    elif content is not None:
        path.write_bytes(content)
    refused = _refusal(path, tmp_path, capsys)
    assert found in refused
    assert "pickle" not in refused


def test_a_damaged_array_is_refused(tmp_path, capsys):
    noise = np.random.default_rng(0).integers(256, size=(6, 28, 28), dtype=np.uint8)
    path = _saved(tmp_path / "data.npz", _arrays(x_train=noise))
    damaged = bytearray(path.read_bytes())
    damaged[2000:2400] = bytes(400)
    path.write_bytes(damaged)
    assert "not readable" in _refusal(path, tmp_path, capsys)


def test_a_single_array_is_refused(tmp_path, capsys):
    np.save(tmp_path / "data.npy", np.zeros(3))
    assert "a single array" in _refusal(tmp_path / "data.npy", tmp_path, capsys)


def test_other_arrays_are_named(tmp_path, capsys):
    path = _saved(tmp_path / "data.npz", {"x_train": np.zeros(3), "images": np.ones(2)})
    found = _refusal(path, tmp_path, capsys)
    assert "no y_train, x_test, y_test" in found
    assert "it holds x_train, images" in found


@pytest.mark.parametrize(
    ("others", "expected"),
    [
        ({"x_train": np.zeros((6, 784), np.uint8)}, "x_train: uint8 of shape [6, 784]"),
        ({"x_test": np.zeros((6, 8, 8), np.uint8)}, "x_test: uint8 of shape [6, 8, 8]"),
        ({"x_train": np.zeros((6, 28, 28))}, "x_train: float64 of shape [6, 28, 28]"),
        ({"y_train": np.zeros((6, 10), np.uint8)}, "y_train: uint8 of shape [6, 10]"),
        ({"y_test": np.zeros(6)}, "y_test: float64 of shape [6]"),
        ({"y_test": np.array(["one"] * 6)}, "y_test: <U3 of shape [6]"),
        ({"y_test": np.zeros(5, np.int64)}, "6 images in x_test, 5 labels in y_test"),
        ({"y_train": np.arange(6) + 5}, "y_train: labels from 5 to 10"),
        ({"y_train": np.arange(6) - 1}, "y_train: labels from -1 to 4"),
        ({"x_test": np.zeros((0, 28, 28), np.uint8)}, "x_test: no images"),
        ({"y_test": np.array([None] * 6)}, "not readable: it holds Python objects"),
    ],
)
def test_wrong_arrays_are_described(others, expected, tmp_path, capsys):
    path = _saved(tmp_path / "data.npz", _arrays(**others))
    assert expected in _refusal(path, tmp_path, capsys)


def test_all_that_is_wrong_is_said_at_once(tmp_path, capsys):
    arrays = _arrays(x_train=np.zeros(6), y_test=np.zeros(6))
    found = _refusal(_saved(tmp_path / "data.npz", arrays), tmp_path, capsys)
    assert [line.split(":")[0].strip() for line in found.splitlines()] == [
        "x_train",
        "y_test",
    ]


def test_a_folder_that_cannot_be_made_is_refused(tmp_path, capsys):
    (tmp_path / "file").write_text("")
    assert demonstrate.main(["--out", str(tmp_path / "file")]) == 2
    assert "Can't write to the folder" in capsys.readouterr().err


def test_a_good_file_is_scaled_to_one(tmp_path):
    bright = np.full((6, 28, 28), 255, np.uint8)
    data = _data.load(_saved(tmp_path / "data.npz", _arrays(x_train=bright)))
    assert data.shape == (28, 28)
    assert data.x_train.dtype == np.float32
    assert data.x_train.min() == data.x_train.max() == 1
    assert not data.x_test.any()
    assert data.flat().x_test.shape == (6, 784)


def test_digits_are_split_the_same_way_every_time():
    first, second = _data.load(None), _data.load(None)
    assert len(first.x_train) + len(first.x_test) == 1797
    np.testing.assert_array_equal(first.y_test, second.y_test)
    standardized = first.standardized().x_train
    np.testing.assert_allclose(standardized.mean(), 0, atol=1e-5)
    np.testing.assert_allclose(standardized.std(), 1, atol=1e-5)


PIXEL = Figure(figsize=(0.1, 0.1))


def _stub(context):
    """A demonstration that learns nothing."""
    steps = list(context.track("stub: steps", context.pick((2, 3, 4))))
    PIXEL.savefig(context.out / "stub.png")
    numbers = {"steps": steps, "seeds": context.seeds, "half": np.float32(0.5)}
    rows = _rows.rows({"it counts": "{steps} of {seeds}"}, **numbers)
    rows = [row._replace(met=True) for row in rows]
    return _registry.Outcome(
        rows, {"inputs": len(context.data.x_train)}, numbers, ["stub.png"]
    )


def _demos(monkeypatch, *, apart=False, **runs):
    """These demonstrations in place of all others, each with words for the report."""
    stubs = tuple(
        _registry.Demo(n, f"the {n}", run, seconds=1, alone=not apart)
        for n, run in runs.items()
    )
    words = {"promise": "<b>", "about": "It is.", "why": "Not.", "code": "1 < 2"}
    monkeypatch.setattr(demonstrate, "DEMOS", stubs)
    monkeypatch.setattr(_report, "SYSTEMS", dict.fromkeys(runs, words))
    return stubs


def _broken(context):
    raise ValueError("it broke")


def _stopped(context):
    raise KeyboardInterrupt


def _verdicts(out):
    """The verdict of each system in results.json, and those that are missing."""
    record = json.loads((out / "results.json").read_text())
    found = {name: demo["verdict"] for name, demo in record["demos"].items()}
    page = (out / "index.html").read_text()
    assert all(f'"verdict {v.replace(" ", "-")}"' in page for v in found.values())
    assert all(_report.MISSING[why] in page for why in record["missing"].values())
    return found, record["missing"]


def test_one_that_fails_does_not_stop_the_others(tmp_path, capsys, monkeypatch):
    _demos(monkeypatch, one=_broken, two=_stub)
    assert demonstrate.main(["--out", str(tmp_path)]) == 1
    assert "ValueError: it broke" in capsys.readouterr().err
    assert _verdicts(tmp_path) == ({"two": "met"}, {"one": "failed"})


def test_what_was_done_is_kept_when_the_run_is_stopped(tmp_path, monkeypatch):
    _demos(monkeypatch, one=_stub, two=_stopped, three=_stub)
    assert demonstrate.main(["--out", str(tmp_path)]) == 130
    missing = {"two": "not run", "three": "not run"}
    assert _verdicts(tmp_path) == ({"one": "met"}, missing)


def _killed(context):
    os.kill(os.getpid(), signal.SIGKILL)


@pytest.mark.slow
def test_demonstrations_run_side_by_side(tmp_path, capsys, monkeypatch):
    """What is found is in the order of the list, whoever ended first."""
    _demos(monkeypatch, apart=True, one=_broken, two=_stub, three=_stub)
    arguments = ["--out", str(tmp_path), "--jobs"]
    assert demonstrate.main([*arguments, "2"]) == 1
    said = capsys.readouterr()
    assert "one failed:\nTraceback" in said.err
    assert "ValueError: it broke" in said.err
    assert "3/3 " in said.out
    found, missing = _verdicts(tmp_path)
    assert list(found.items()) == [("two", "met"), ("three", "met")]
    assert missing == {"one": "failed"}
    side_by_side = json.loads((tmp_path / "results.json").read_text())["demos"]
    assert demonstrate.main([*arguments, "1"]) == 1
    alone = json.loads((tmp_path / "results.json").read_text())["demos"]
    for name in found:
        del side_by_side[name]["seconds"], alone[name]["seconds"]
    assert side_by_side == alone


@pytest.mark.slow
def test_a_process_that_is_killed_is_a_failure(tmp_path, capsys, monkeypatch):
    """Those that had not begun are run nevertheless."""
    later = {"three": _stub, "four": _stub}  # the last of equally long ones is first
    _demos(monkeypatch, apart=True, **later, one=_stub, two=_killed)
    assert demonstrate.main(["--out", str(tmp_path), "--jobs", "2"]) == 1
    assert "Is there enough memory?" in capsys.readouterr().err
    found, missing = _verdicts(tmp_path)
    assert missing["two"] == "failed"
    assert found.keys() >= later.keys()


def test_the_report_needs_no_other_file_and_no_scripts(tmp_path, monkeypatch):
    _demos(monkeypatch, one=_stub)
    assert demonstrate.main(["--out", str(tmp_path)]) == 0
    page = (tmp_path / "index.html").read_text()
    assert "<script" not in page
    assert "&lt;b&gt;" in page
    assert "1 &lt; 2" in page
    links = re.findall(r"""(?:src|href)=["']([^"']*)""", page)
    assert len(links) == 3
    assert all(link.startswith(("data:", "#")) for link in links)
    (drawn,) = re.findall(r"data:image/png;base64,([^\"]+)", page)
    assert base64.b64decode(drawn) == (tmp_path / "stub.png").read_bytes()


@pytest.mark.parametrize(
    ("met", "verdict"),
    [
        ([True, None, True], "met"),
        ([True, False], "partly"),
        ([False, None], "not met"),
        ([None], "not asked"),
    ],
)
def test_a_verdict_is_of_all_that_can_be_told(met, verdict):
    rows = [_registry.Row("", "", each) for each in met]
    assert _registry.Outcome(rows, {}, {}, []).verdict == verdict


@pytest.mark.parametrize(
    ("rule", "expected"),
    [
        ("{x[a]} > {x[b]} - 0.1", True),
        ("{x[a]} >= 0.5 and {right}", True),
        ("{x[b]} < {x[a]}", False),
        ("{x[none]} > 0", False),
        ("{x[many][1]} == 2", True),
    ],
)
def test_a_promise_is_met_if_what_was_measured_compares_so(rule, expected):
    """Means of arrays are compared; nan is as promised never."""
    found = {"a": np.array([0.4, 0.6]), "b": 0.55, "none": math.nan, "many": [1, 2]}
    words = {"promise": "", "measured": "", "met": rule}
    assert _rows._row(words, {"x": found, "right": np.bool_(True)}).met is expected


def test_what_a_size_leaves_out_is_not_judged():
    words = {"promise": "p", "measured": "{a}", "met": "{b[x]} > 0", "short": "{b[x]}"}
    assert _rows._row(words, {"a": 1, "b": {}}) == ("p", "1", None, "")


def test_the_report_has_words_for_every_demonstration():
    assert _report.SYSTEMS.keys() == {demo.name for demo in DEMOS}
    for name, words in _report.SYSTEMS.items():
        assert words.keys() == {"promise", "about", "why", "code"}, name
        assert len(words["promise"]) < 60, name
        assert words["about"].count(". ") <= 1, name


@pytest.mark.parametrize("name", _report.SYSTEMS)
def test_the_lines_of_code_call_what_there_is(name):
    """Each call of maskjax or optax takes the arguments that it is given."""
    scope = {"maskjax": maskjax, "optax": optax} | vars(maskjax)
    calls = [
        call
        for call in ast.walk(ast.parse(_report.SYSTEMS[name]["code"]))
        if isinstance(call, ast.Call) and isinstance(call.func, ast.Attribute)
    ]
    assert calls
    for call in calls:
        function = eval(ast.unparse(call.func), {}, scope)
        named = {keyword.arg: None for keyword in call.keywords}
        inspect.signature(function).bind(*call.args, **named)


@pytest.mark.parametrize(
    ("size", "steps", "seeds"), [("quick", 2, 10), ("default", 3, 3), ("full", 4, 10)]
)
def test_results_say_what_was_done_and_found(
    size, steps, seeds, tmp_path, capsys, monkeypatch
):
    stubs = _demos(monkeypatch, one=_stub, two=_stub)
    how = [] if size == "default" else [f"--{size}"]
    assert demonstrate.main([*how, "--out", str(tmp_path / "out")]) == 0
    said = capsys.readouterr().out
    lines = [line.split(": ")[0] for line in said.splitlines() if line.endswith(" s")]
    assert lines == ["1/2 one", "2/2 two"]
    assert said.count(": met, ") == 2
    record = json.loads((tmp_path / "out" / "results.json").read_text())
    digits = {"name": "digits of scikit-learn", "train": 1437, "test": 360}
    assert record["data"] == digits | {"shape": [8, 8]}
    settings = {"size": size, "seeds": seeds}
    assert record["settings"] == settings | {"xla_flags": _compiling.flags()}
    assert record["versions"].keys() >= {"python", "maskjax", "jax"}
    assert record["device"].keys() >= {"platform", "kind", "cores"}
    for stub in stubs:
        found = record["demos"][stub.name]
        assert found["title"] == stub.title
        assert found["settings"] == {"inputs": 1437}
        assert found["numbers"]["steps"] == list(range(steps))
        assert found["numbers"]["half"] == 0.5
        assert found["pictures"] == ["stub.png"]
        counted = ", ".join(map(str, range(steps)))
        row = {"promise": "it counts", "measured": f"{counted} of {seeds}"}
        assert found["rows"] == [row | {"met": True, "short": ""}]
        assert found["verdict"] == "met"
    assert record["missing"] == {}


def test_a_terminal_gets_one_bar_with_the_time_left():
    console = rich.console.Console(file=io.StringIO(), force_terminal=True, width=100)

    one, two = (_registry.Demo(name, name, lambda _: None, seconds=60) for name in "ab")
    with _registry.Progress([one, two], console) as bars:
        bars.begin(one)
        assert list(bars.track("xyz", "letters")) == list("xyz")
        bars.begin(two)  # beside it
        for demo in two, one:
            bars.tick()
            bars.end(demo, "met", 1.0)
    written = console.file.getvalue()
    assert "2.0 min left" in written
    assert "a, b" in written
    assert "0.0 min left" in written
    assert "2/2" not in written


@pytest.mark.parametrize(
    ("value", "how", "expected"),
    [
        (True, "yes|NO", "yes"),
        (np.bool_(False), "yes|NO", "NO"),
        (1234, ",", "1,234"),
        (np.array([0.5, 1.0]), ".1%", "75.0%"),
        (np.array([0.5, 1.0]), ".1%+-", "75.0% +- 25.0"),
        (np.array([1.0, 3.0]), ".2f+-", "2.00 +- 1.00"),
        (np.array([1.0, 3.0]), ".2f+-95", "2.00 +- 12.71"),
        (np.array([1.0, 5.0]), ".2f+-se", "3.00 +- 2.00"),
        (np.array([1.0]), ".2f+-se", "1.00"),
        ({"a": np.ones(2), "b": 0.25}, ".0%", "a 100%, b 25%"),
        ({"a": [1, 2], "b": [3]}, "", "a 1, 2; b 3"),
    ],
)
def test_numbers_are_put_into_words(value, how, expected):
    assert _rows.said(value, how) == expected
    (row,) = _rows.rows({"promise": f"it is {{x[y]:{how}}}"}, x={"y": value})
    assert row[:2] == ("promise", f"it is {expected}")


def test_members_train_apart_under_their_masks():
    """Removed weights stay 0, kept ones move, and masks stay as they are."""
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(40, 4)).astype(np.float32), rng.integers(0, 3, 40)
    params = _train.glorot(rng, (4, 5, 3), 2)
    masks = jax.tree.map(lambda w: rng.random(w.shape) < 0.5, params)
    net = _train.MLP((5, 3))
    start, step = _train.under_masks(
        lambda params, x: net.apply({"params": params}, x), optax.sgd(0.1)
    )
    states = jax.jit(jax.vmap(start))(params, masks)
    epoch = _train.epoch_of(step, x, y, size=16, groups=2)
    trained = _train.epochs_by(epoch, states, range(2), key=jax.random.key(0))
    leaves = map(jax.tree.leaves, (states.params, trained.params, masks))
    moved = []
    for before, after, mask in zip(*leaves, strict=True):
        assert not np.asarray(after)[~mask].any()
        moved.append((np.asarray(before) != np.asarray(after))[mask])
    assert np.concatenate(moved).mean() > 0.5
    assert _train.same_bits(trained.rest, masks)
    assert not _train.same_bits(trained.params, states.params)
