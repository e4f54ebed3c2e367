"""Questions about speed: the timer, the lines, the tables, and every question."""

import functools
import json
import sys
import types

import jax
import numpy as np
import pytest

from benchmarks import _chips, _deep, _timing
from benchmarks.speed import __main__ as speed
from benchmarks.speed import _case, _results, packing, selection, tpu_compile

pytestmark = [pytest.mark.optimized, pytest.mark.usefixtures("loose")]

CONTEXT = {"device", "cores", "jax", "maskjax", "commit", "run"}
CONTEXT |= {"dtype", "shape", "density", "structure"}
MEASURED = {"question", "case", "contestant", "role"}
MEASURED |= {"compile_s", "median_s", "iqr_s", "repeats"}


def _lines(root, question):
    path = root / _results.device_slug() / f"{question}.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_list_names_every_question_with_its_first_line(capsys):
    assert speed.main(["--list"]) == 0
    listed = dict(line.split(": ", 1) for line in capsys.readouterr().out.splitlines())
    assert tuple(listed) == speed.QUESTIONS
    assert all(question.endswith("?") for question in listed.values())


def test_an_unknown_question_is_refused(capsys):
    with pytest.raises(SystemExit, match="2"):
        speed.main(["--only", "weather"])
    assert "invalid choice: 'weather'" in capsys.readouterr().err


@pytest.fixture
def toy(monkeypatch):
    """A question that nothing is compiled for; the right answer, which may change."""
    toy = types.ModuleType("benchmarks.speed.toy", "How fast is 1 + 1?")
    toy.FULL, toy.QUICK, toy.answers = [(100,), (200,)], [(1,), (2,)], [2, 2, 2]

    def case(size):
        names = ("we", "they", "nobody is faster")
        each = [
            _timing.Contestant(name, lambda i=i: np.full(size, toy.answers[i]))
            for i, name in enumerate(names)
        ]

        def agree(results):
            for result in results.values():
                np.testing.assert_array_equal(result, 2)

        return _case.of(f"n={size}", each, agree, shape=[size], density=None, extra=3)

    toy.case = case
    monkeypatch.setitem(sys.modules, toy.__name__, toy)
    monkeypatch.setattr(speed, "QUESTIONS", ("toy",))
    return toy


def _check(lines, question):
    for line in lines:
        assert CONTEXT | MEASURED <= line.keys()
        assert line["question"] == question
        assert line["median_s"] > 0
        assert line["iqr_s"] >= 0
        assert line["repeats"] == 3
        assert line["commit"] != "unknown"
    for case in {line["case"] for line in lines}:
        roles = [line["role"] for line in lines if line["case"] == case]
        assert roles == ["ours", *["baseline"] * (len(roles) - 2), "limit"]
        assert len(roles) >= 3


def test_a_quick_run_writes_lines_with_all_their_context(toy, tmp_path, capsys):
    assert speed.main(["--quick", "--only", "toy", "--out", str(tmp_path)]) == 0
    lines = _lines(tmp_path, "toy")
    _check(lines, "toy")
    assert [line["case"] for line in lines] == ["n=1"] * 3 + ["n=2"] * 3
    assert all(line["extra"] == 3 for line in lines)
    assert "we (ours)" in capsys.readouterr().out


def test_a_quick_run_leaves_the_results_alone(toy, monkeypatch, tmp_path):
    monkeypatch.setattr(speed, "RESULTS", tmp_path / "results")
    assert speed.main(["--quick"]) == 0
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("wrong", [0, 1, 2])
def test_nothing_is_timed_when_results_disagree(wrong, toy, tmp_path):
    toy.answers[wrong] = 3
    with pytest.raises(AssertionError, match="not equal"):
        speed.main(["--quick", "--only", "toy", "--out", str(tmp_path)])
    assert not list(tmp_path.iterdir())


def test_programs_for_chips_that_are_not_there_have_a_table_of_their_own(tmp_path):
    shared = dict.fromkeys(("run", "device", "cores", "jax", "maskjax", "commit"), "x")
    facts = {"code": 1_090_000, "arguments": 512, "temporary": 0, "bytes": 85e6}
    facts |= {"flops": 2e9, "compile_cpu_s": 0.5, "largest_collective": 1}
    line = {"case": "top_k, 4 chips", "contestant": "leaf", "role": "ours"}
    line |= {**shared, **facts, "collectives": {"all-reduce": 4}}
    _results.append(tmp_path / tpu_compile.FOLDER / "tpu_compile.jsonl", [line])
    assert speed.main(["--table", "--out", str(tmp_path)]) == 0
    row = _results.table([line]).splitlines()[-1]
    assert row == (
        "| leaf (ours) | 1.09 M | 512 | 0 | 85 M | 2 G | 500 ms "
        "| 4 all-reduce of at most 1 |"
    )
    assert row in _results.markdown(tmp_path, {"tpu_compile": "What?"})


def test_without_libtpu_nothing_is_compiled(monkeypatch, capsys):
    monkeypatch.setattr(_chips, "installed", lambda: False)
    assert tpu_compile.main([]) == 1
    assert "pip install -e '.[tpu]'" in capsys.readouterr().out


def test_every_case_compiled_for_chips_has_one_limit_and_cuts_its_data():
    name = "GPT d=512 layers=8 in a scan batch=32x256"
    contestants = tpu_compile.halved(name)
    assert [c.role for c in contestants] == ["ours", "baseline", "limit"]
    ours, dense, limit = (jax.tree.map(np.shape, c.args) for c in contestants)
    assert ours == limit != dense
    assert ours[1:] == dense[1:] == ((32, 256), (32, 256))


def test_layers_in_a_scan_are_those_of_a_loop():
    how = {"vocabulary": 7, "width": 8, "heads": 2, "head_width": 4, "hidden": 6}
    loop, scan = (_deep.GPT(**how, layers=2, scan=scan) for scan in (False, True))
    x = np.arange(10).reshape(2, 5) % 7
    init = functools.partial(scan.init, jax.random.key(0), train=False)
    rng, shapes = np.random.default_rng(0), jax.eval_shape(init, x)
    variables = jax.tree.map(lambda s: rng.normal(size=s.shape).astype("f4"), shapes)
    params = dict(variables["params"])
    stack = params.pop("layers")
    for i in range(2):
        for name, leaves in jax.tree.map(lambda leaf, i=i: leaf[i], stack).items():
            head, _, tail = (
                name.partition("_") if "attention" in name else (name, "", "")
            )
            params[f"{head}{i}_{tail}" if tail else f"{head}{i}"] = leaves
    run = jax.jit(lambda a, b: (scan.apply(a, x, train=0), loop.apply(b, x, train=0)))
    np.testing.assert_allclose(*run(variables, {"params": params}), atol=1e-5)


def test_collectives_are_read_off_a_program():
    text = """
      %all-reduce.1 = (s32[]{:T(128)}, f32[4,2]{1,0}) all-reduce(%a, %b), channel_id=1
      %ag = u32[8,16]{1,0:T(8,128)} all-gather-start(%c), dimensions={0}
      %fusion = f32[7] fusion(%all-reduce.1), calls=%all-gather
    """
    found = [("all-reduce", [1, 8]), ("all-gather", [128])]
    assert _chips.collectives(text) == found


@pytest.mark.slow
@pytest.mark.parametrize("question", speed.QUESTIONS)
def test_a_question_is_answered(question, tmp_path, capsys):
    assert speed.main(["--quick", "--only", question, "--out", str(tmp_path)]) == 0
    lines = _lines(tmp_path, question)
    _check(lines, question)
    assert f"{lines[0]['contestant']} (ours)" in capsys.readouterr().out


def test_contestants_of_packed_masks_agree():
    """The one real case in the fast suite: compiled, and its memory counted."""
    case = packing.case(*packing.QUICK[0])
    case.agree({each.name: each.run() for each in case.contestants})
    assert all(each.compile_s > 0 for each in case.contestants)
    assert [each.nbytes for each in case.contestants[1:4]] == [5400, 5400, 21600]


def test_the_exact_mask_keeps_the_first_of_equals():
    scores = [np.array([1.0, 2.0], np.float32), np.array([[2.0], [2.0]], np.float32)]
    at = selection._np_thresholds(scores, [2], "global")
    first, second = selection.first_of_equals(scores, [2], at, "global")
    np.testing.assert_array_equal(first, [False, True])
    np.testing.assert_array_equal(second, [[True], [False]])


def test_contestants_take_turns_and_are_timed_per_step():
    calls = []

    def contestant(name, seconds, **more):
        def run():
            calls.append(name)
            return seconds

        return _timing.Contestant(name, run, keeps_time=True, **more)

    quick, slow = contestant("quick", 1.0, steps=4), contestant("slow", 3.0)
    timings = _timing.race([quick, slow], lambda _: None, repeats=10, seconds=6.0)
    assert timings["quick"] == _timing.Timing(0.25, 0.0, 6)
    assert timings["slow"] == _timing.Timing(3.0, 0.0, 5)
    timed = calls[2:]
    assert abs(timed[:6].count("quick") - 3) <= 1


def test_the_median_and_the_range_between_quartiles_are_reported():
    values = iter([9.0, 5.0, 1.0, 2.0, 3.0, 4.0])
    each = _timing.Contestant("x", lambda: next(values), keeps_time=True)
    timings = _timing.race([each], lambda _: None, repeats=5)
    assert timings["x"] == _timing.Timing(3.0, 2.0, 5)  # 9, the first, warms up


def test_compiling_is_timed_afresh():
    x = jax.numpy.ones(3)
    first, seconds = _timing.compiled(lambda x: x + 1, x)
    np.testing.assert_array_equal(first(x), [2, 2, 2])
    assert seconds > 0


def test_tables_are_of_the_last_run_and_go_between_the_readmes_markers(
    tmp_path, capsys
):
    root = tmp_path / "results"
    line = {"question": "selection", "case": "n=1", "jax": "0", "maskjax": "0"}
    line |= {"device": "cpu", "cores": 2, "commit": "abc", "repeats": 5}
    line |= {"compile_s": 1.0, "iqr_s": 1e-5, "bytes": None}
    for run, seconds in (("monday", 9.0), ("tuesday", 0.02)):
        _results.append(
            root / "cpu-2" / "selection.jsonl",
            [
                line | {"run": run, "contestant": c, "role": r, "median_s": s}
                for c, r, s in (("us", "ours", seconds), ("least", "limit", 0.005))
            ],
        )
    readme = tmp_path / "README.md"
    readme.write_text(f"before\n{_results.BEGIN}\nold\n{_results.END}\nafter\n")
    for _ in range(2):
        assert speed.main(["--table", "--out", str(root)]) == 0
    row = "| us (ours) | 20 ms | 10 us | 1.00 | 4.00 | 1 s | 5 |  |"
    assert row in capsys.readouterr().out
    text = readme.read_text()
    assert text.startswith("before\n")
    assert text.endswith("after\n")
    assert text.count(row) == 1
    assert "old" not in text
    assert "9 s" not in text
