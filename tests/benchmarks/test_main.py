import functools
import json
import os
import pathlib
import struct

import jax
import numpy as np
import pytest

from benchmarks import __main__ as demonstrate
from benchmarks import _data, _tasks
from benchmarks.demos import DEMOS

pytestmark = pytest.mark.optimized


@pytest.fixture(autouse=True)
def _ordinary_promotion(_strict_promotion):
    """Benchmarks are scripts of users, who leave promotion as it is."""
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        yield


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


def test_list_names_every_demonstration_and_its_paper(capsys):
    assert demonstrate.main(["--list"]) == 0
    listed = [line.split(": ", 1) for line in capsys.readouterr().out.splitlines()]
    assert listed == [[demo.name, demo.title] for demo in DEMOS]


def test_an_unknown_name_is_refused_and_the_known_are_listed(capsys):
    with pytest.raises(SystemExit) as stop:
        demonstrate.main(["--only", "weather"])
    assert stop.value.code == 2
    said = capsys.readouterr().err
    assert "invalid choice: 'weather'" in said
    assert all(demo.name in said for demo in DEMOS)


def test_a_missing_file_is_refused(tmp_path, capsys):
    assert "no such file" in _refusal(tmp_path / "none.npz", tmp_path, capsys)


def test_a_folder_is_refused(tmp_path, capsys):
    assert "a folder" in _refusal(tmp_path, tmp_path, capsys)


@pytest.mark.parametrize("fraction", [0.0, 0.3, 0.95])
def test_a_truncated_file_is_refused(fraction, tmp_path, capsys):
    path = _saved(tmp_path / "data.npz", _arrays())
    whole = path.read_bytes()
    path.write_bytes(whole[: int(fraction * len(whole))])
    assert "not readable" in _refusal(path, tmp_path, capsys)


def test_a_damaged_array_is_refused(tmp_path, capsys):
    noise = np.random.default_rng(0).integers(256, size=(6, 28, 28), dtype=np.uint8)
    path = _saved(tmp_path / "data.npz", _arrays(x_train=noise))
    damaged = bytearray(path.read_bytes())
    damaged[2000:2400] = bytes(400)
    path.write_bytes(damaged)
    assert "not readable" in _refusal(path, tmp_path, capsys)


@pytest.mark.parametrize(
    "content", [b"", b"not an archive", struct.pack("<9d", *[1] * 9)]
)
def test_a_file_of_another_kind_is_refused(content, tmp_path, capsys):
    path = tmp_path / "data.npz"
    path.write_bytes(content)
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
        ({"y_test": np.array([None] * 6)}, "not readable: Object arrays"),
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


def test_tasks_of_consecutive_classes_are_as_large_as_the_smallest():
    y = np.array([0, 9, 1, 2, 3, 0, 8, 4, 5, 6, 7, 9], np.int32)
    x = np.arange(12, dtype=np.float32)[:, None]
    split = _tasks.split(_data.Data("twelve", x, y, x[:10] + 1, y[:10]))
    np.testing.assert_array_equal(
        split.y_train, [[0, 1], [2, 3], [4, 5], [6, 7], [9, 8]]
    )
    np.testing.assert_array_equal(
        split.x_train[..., 0], [[0, 2], [3, 4], [7, 8], [9, 10], [1, 6]]
    )
    np.testing.assert_array_equal(split.x_test[..., 0], [[1], [4], [8], [10], [2]])


def test_digits_are_split_the_same_way_every_time():
    first, second = _data.load(None), _data.load(None)
    assert len(first.x_train) + len(first.x_test) == 1797
    np.testing.assert_array_equal(first.y_test, second.y_test)
    standardized = first.standardized().x_train
    np.testing.assert_allclose(standardized.mean(), 0, atol=1e-5)
    np.testing.assert_allclose(standardized.std(), 1, atol=1e-5)


@pytest.fixture(scope="module")
def quick(tmp_path_factory):
    """Runs a demonstration for little time, once; its folder and results.json.

    Or reads what was written where `QUICK_OUT` says, by `--quick --out` for all.
    """

    @functools.cache
    def run(name):
        out = os.environ.get("QUICK_OUT") or tmp_path_factory.mktemp(name) / "out"
        if "QUICK_OUT" not in os.environ:
            assert demonstrate.main(["--quick", "--only", name, "--out", str(out)]) == 0
        out = pathlib.Path(out)
        return out, json.loads((out / "results.json").read_text())

    return run


# The others take half a minute each.
SHORT = {"magnitude"}


@pytest.mark.parametrize(
    "demo",
    [
        pytest.param(
            demo, id=demo.name, marks=[] if demo.name in SHORT else pytest.mark.slow
        )
        for demo in DEMOS
    ],
)
def test_a_demonstration_writes_its_results_and_pictures(demo, quick):
    out, record = quick(demo.name)
    assert record["data"] == {
        "name": "digits of scikit-learn",
        "train": 1437,
        "test": 360,
        "shape": [8, 8],
    }
    assert record["settings"] == {"quick": True, "seeds": 10}
    assert record["versions"].keys() >= {"python", "maskjax", "jax"}
    assert record["device"].keys() >= {"platform", "kind", "cores"}
    assert demo.name in record["demos"]

    found = record["demos"][demo.name]
    assert found["title"] == demo.title
    assert found["seconds"] > 0
    assert found["settings"]
    assert found["numbers"]
    assert found["rows"]
    for row in found["rows"]:
        assert row.keys() == {"promise", "measured"}
    assert found["pictures"]
    written = {path.name for path in out.iterdir()}
    drawn = {name for one in record["demos"].values() for name in one["pictures"]}
    assert written == {"results.json", *drawn}
    for name in found["pictures"]:
        assert (out / name).read_bytes().startswith(b"\x89PNG")


def test_pruned_networks_recover_and_random_ones_do_less(quick):
    numbers = quick("magnitude")[1]["demos"]["magnitude"]["numbers"]
    at = numbers["densities"].index(0.1)
    before, after, random = (
        np.mean(numbers[name][at])
        for name in ("smallest", "smallest_tuned", "random_tuned")
    )
    assert np.mean(numbers["dense"]) > 0.93
    assert after > 0.9
    assert after > before
    assert after > random
    assert len(numbers["dense"]) == 10
    assert numbers["kept"][at] == 5_020
    assert numbers["removed_are_zero"]


@pytest.mark.slow
def test_random_weights_learn_by_their_mask_alone(quick):
    numbers = quick("edge_popup")[1]["demos"]["edge_popup"]["numbers"]
    assert numbers["weights_unchanged"]
    assert numbers["counts_exact"]
    assert len(numbers["learned_masks"]) == 10
    assert np.mean(numbers["first_masks"]) < 0.25
    assert np.mean(numbers["learned_masks"]) > 0.9
    assert all(np.mean(found) > 0.8 for found in numbers["other_masks"].values())
    # With every weight kept there is nothing to learn.
    assert np.mean(numbers["learned_masks_by_density"]["1"]) < 0.3


@pytest.mark.slow
def test_random_weights_learn_by_probabilities_of_masks(quick):
    numbers = quick("supermask")[1]["demos"]["supermask"]["numbers"]
    assert numbers["weights_unchanged"]
    sampled = {rung: np.mean(found) for rung, found in numbers["sampled"].items()}
    assert sampled["both"] > 0.85
    assert sampled["rescaled"] > sampled["plain"]
    assert np.mean(numbers["rounded"]["both"]) > 0.85
    assert np.mean(numbers["one_sample_by_epoch"]["both"][0]) < 0.25
    assert all(0 < d < 1 for ds in numbers["density"].values() for d in ds)


@pytest.mark.slow
def test_masks_that_move_in_training_are_exact_and_of_use(quick):
    numbers = quick("pruning")[1]["demos"]["pruning"]["numbers"]
    assert numbers["counts_are_exact"]
    assert numbers["removed_are_zero"]
    assert numbers["densities"] == [0.1, 0.02]
    means = {name: np.mean(numbers[name], axis=1) for name in ("gradual", "one-shot")}
    assert np.mean(numbers["dense"]) > 0.93
    assert means["gradual"][0] > 0.88
    assert means["gradual"][1] > means["one-shot"][1]


@pytest.mark.slow
def test_tickets_beat_random_masks_of_their_counts(quick):
    numbers = quick("lottery_ticket")[1]["demos"]["lottery_ticket"]["numbers"]
    assert numbers["counts_exact"]
    assert numbers["removed_are_zero"]
    seventh = numbers["rounds_of_controls"].index(7)
    assert 0.2 < numbers["density"][7] < 0.22
    tickets = np.mean(numbers["tickets"]["end"][7])
    assert tickets > np.mean(numbers["random"]["end"][seventh])
    assert tickets > np.mean(numbers["tickets"]["end"][0]) - 0.02


@pytest.mark.slow
def test_masks_on_untrained_weights_know_digits(quick):
    numbers = quick("deconstructing")[1]["demos"]["deconstructing"]["numbers"]
    signed = np.mean(numbers["constants"]["large_final_same_sign"], axis=-1)
    assert signed.max() > 0.75
    untrained = {name: np.mean(v, axis=-1) for name, v in numbers["untrained"].items()}
    assert untrained["large_final_same_sign"].max() > untrained["random"].max() + 0.3


@pytest.mark.slow
def test_scores_find_what_trained_networks_need(quick):
    numbers = quick("criteria")[1]["demos"]["criteria"]["numbers"]
    after = {name: np.mean(v, axis=-1) for name, v in numbers["after_training"].items()}
    assert (after["magnitude"][:3] > after["random"][:3]).all()
    before = numbers["before_training"]["0.1"]
    assert np.mean(before["synflow"]) > np.mean(before["wanda"])
    # All but Wanda's, which rounds for every output, keep the same global count.
    for name in ("magnitude", "snip", "fisher", "grasp", "synflow"):
        np.testing.assert_allclose(
            numbers["kept"][name], numbers["densities"], atol=1e-4
        )


@pytest.mark.slow
def test_most_masks_are_found_again_in_a_hopfield_network(quick):
    numbers = quick("hopsupsup")[1]["demos"]["hopsupsup"]["numbers"]
    assert numbers["widths"] == [1024]
    found = {name: numbers[name]["1024"] for name in numbers if name != "widths"}
    assert np.mean(found["stored_masks"]) > 0.97
    assert np.mean(found["right_task_nearest"]) > 0.75
    assert np.mean(found["agreement"]) > 0.85
    assert np.mean(found["recovered_masks"]) > 0.75
    assert (found["psi_bytes"], found["mask_bytes"]) == (2 * 4 * 1024**2, 5 * 2 * 128)


@pytest.mark.slow
def test_tasks_in_superposition_are_kept_and_told_apart(quick):
    numbers = quick("supsup")[1]["demos"]["supsup"]["numbers"]
    assert len(numbers["given"]) == 5
    assert np.min(numbers["given"]) > 0.85
    assert numbers["unchanged"]
    assert numbers["task_inference"]["one_shot superfluous"] > 0.95
    assert numbers["gnu"] > 0.85
    assert numbers["gns"] >= numbers["gnu"]
    assert 1 <= 8 * numbers["bytes_per_task"] / numbers["weights"] < 1.01
    assert 1 <= numbers["stream"]["masks"] <= 12


def test_the_number_of_tasks_is_at_least_two(capsys):
    with pytest.raises(SystemExit, match="2"):
        demonstrate.main(["--tasks", "1"])
    assert "at least 2 tasks, got 1" in capsys.readouterr().err


def test_tasks_permute_the_pixels_each_in_its_own_order():
    data = _data.load(None)
    orders = _tasks.permutations(data, 4)
    np.testing.assert_array_equal(orders[0], np.arange(64))
    np.testing.assert_array_equal(np.sort(orders, axis=1), np.tile(orders[0], (4, 1)))
    assert len(np.unique(orders, axis=0)) == 4
    np.testing.assert_array_equal(_tasks.permutations(data, 2), orders[:2])


@pytest.mark.slow
def test_a_target_is_learned_from_few_samples_and_its_source_kept(quick):
    numbers = quick("pacnet")[1]["demos"]["pacnet"]["numbers"]
    assert numbers["compiled"] == 1
    (found,) = numbers["distances"].values()
    assert found["bit_identical"]
    error = {name: np.mean(each, axis=-1) for name, each in found["rmse"].items()}
    for name in ("PAC-Net", "fine-tuning", "L2-SP"):
        assert error[name][1] < error["from scratch"][1] - 0.5
    before, after = found["source_rmse"], found["source_rmse_after"]
    assert after["PAC-Net"] == 4 * [before["PAC-Net"]]
    assert np.mean(found["pruned_rmse"]) > np.mean(before["PAC-Net"]) + 0.5
    forgotten = np.mean(after["fine-tuning"], axis=-1) - np.mean(before["fine-tuning"])
    assert forgotten.min() > 0.3


@pytest.mark.slow
def test_what_is_meta_trained_learns_faster_from_few_samples(quick):
    numbers = quick("meta_ticket")[1]["demos"]["meta_ticket"]["numbers"]
    maml, ticket = (numbers["sinusoids"][n] for n in ("MAML", "Meta-ticket"))
    assert maml["mse_by_step"][5] < maml["mse_by_step"][0] - 0.4
    assert maml["density"] == 1
    assert 0.5 < ticket["density"] < 1  # it has just begun, and the mask has moved
    found = numbers["images"]["width 1, 1-shot"]
    assert found["unchanged"]
    assert 0.3 < found["density"] < 0.9
    first = {name: steps[0] for name, steps in found["accuracy_by_step"].items()}
    assert min(first["MAML"], first["Meta-ticket"]) > first["not meta-trained"] + 0.03


@pytest.mark.slow
def test_tasks_in_one_network_are_not_forgotten(quick):
    numbers = quick("packnet")[1]["demos"]["packnet"]["numbers"]
    assert numbers["bit_identical"]
    assert numbers["compiled"] == 1
    assert np.max(numbers["forgetting"]["packnet"]) == 0
    assert numbers["owned"] == numbers["allotted"]
    final = {name: np.mean(found) for name, found in numbers["final"].items()}
    assert final["packnet"] > final["naive"] + 0.05
    assert final["packnet"] > final["single"] - 0.1


@pytest.mark.slow
def test_a_trained_network_is_made_of_a_random_one(quick):
    numbers = quick("strong_ticket")[1]["demos"]["strong_ticket"]["numbers"]
    assert numbers["within_bound"]
    assert numbers["target"] > 0.93
    made = numbers["made"]
    for name in ("nearest", "fewest", "nearest, a set for each weight"):
        assert made[name]["missed"] <= 1  # by an unlucky draw, of 2,410
        assert abs(made[name]["accuracy"] - numbers["target"]) < 0.01
    assert made["fewest"]["kept"] < made["nearest"]["kept"] / 3
    for name in ("greedy", "subset_sum"):
        assert abs(made[name]["accuracy"] - numbers["target"]) < 0.01
    slopes = {name: np.mean(found) for name, found in numbers["slopes"].items()}
    assert abs(slopes["product"] + 1) < 0.1
    assert abs(slopes["factor"] + 0.5) < 0.1
    assert -0.6 < slopes["subset_sum"] < -0.35
    missed = numbers["missed_by_neurons"]
    few, many = (np.mean(missed["greedy"][i]) for i in (0, -1))
    assert np.mean(missed["ridge"]) < many < few


@pytest.mark.slow
def test_networks_that_disagree_know_what_they_were_not_taught(quick):
    numbers = quick("uncertainty")[1]["demos"]["uncertainty"]["numbers"]
    assert all(numbers["laws"].values())
    ways = numbers["ways"]
    single, ensemble = ways["one network"], ways["deep ensemble"]
    assert min(np.mean(found["accuracy"]) for found in ways.values()) > 0.9
    for found in ways.values():
        assert len(found["nll"]) == 5
        assert np.mean(found["auroc"]["entropy"]) > 0.8
        turned = np.mean(found["turned_nll"], axis=-1)
        assert turned[-1] > turned[0] + 1  # at 90 degrees
        assert np.mean(found["turned_accuracy"][-1]) < 0.4
    assert np.mean(ensemble["auroc"]["entropy"]) > np.mean(single["auroc"]["entropy"])
    at = numbers["angles"].index(60)
    assert np.mean(ensemble["turned_nll"][at]) < np.mean(single["turned_nll"][at])
    cooled = ways["one network, temperature fitted"]
    assert cooled["accuracy"] == single["accuracy"]
    params = numbers["params"]
    assert params["deep ensemble"] == 5 * params["one network"]
    assert params["Masksembles"] == params["MC-dropout"] == params["one network"]
    for found in numbers["diabetes"].values():
        assert 40 < np.mean(found["rmse"]) < 80  # as it is, 77
