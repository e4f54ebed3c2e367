"""Every demonstration, for little time: what its paper promises can be seen already."""

import functools
import json
import os
import pathlib

import numpy as np
import pytest

from benchmarks import __main__ as demonstrate
from benchmarks import _rows
from benchmarks.demos import DEMOS

pytestmark = [pytest.mark.optimized, pytest.mark.slow, pytest.mark.usefixtures("loose")]


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


@pytest.mark.parametrize("demo", DEMOS, ids=lambda demo: demo.name)
def test_a_demonstration_writes_its_results_and_pictures(demo, quick):
    out, record = quick(demo.name)
    found = record["demos"][demo.name]
    assert found["title"] == demo.title
    assert found["seconds"] > 0
    for part in ("settings", "numbers", "rows", "pictures"):
        assert found[part], part
    rules = [row for row in _rows._PROMISES[demo.name] if "met" in row]
    judged = [row for row in found["rows"] if row["met"] is not None]
    assert len(judged) == len(rules) or found["numbers"].keys() == {"missing"}
    for row in found["rows"]:
        assert row.keys() == {"promise", "measured", "met", "short"}
    written = {path.name for path in out.iterdir()}
    drawn = {name for one in record["demos"].values() for name in one["pictures"]}
    assert written == {"results.json", "index.html", *drawn}
    assert demo.name == "sentence_encoder" or found["verdict"] != "not asked"
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


def test_random_weights_learn_by_probabilities_of_masks(quick):
    numbers = quick("supermask")[1]["demos"]["supermask"]["numbers"]
    assert numbers["weights_unchanged"]
    sampled = {rung: np.mean(found) for rung, found in numbers["sampled"].items()}
    assert sampled["both"] > 0.85
    assert sampled["rescaled"] > sampled["plain"]
    assert np.mean(numbers["rounded"]["both"]) > 0.85
    assert np.mean(numbers["one_sample_by_epoch"]["both"][0]) < 0.25
    assert all(0 < d < 1 for ds in numbers["density"].values() for d in ds)


def test_clients_that_send_a_bit_a_weight_learn_together(quick):
    numbers = quick("fedpm")[1]["demos"]["fedpm"]["numbers"]
    assert numbers["weights_unchanged"]
    assert numbers["counts_exact"]
    # A bit a weight, in whole words, and three words beside.
    assert numbers["bits_up"]["fedpm"] == pytest.approx(1 + 96 / numbers["weights"])
    assert numbers["bits_down"] == {"floats": 32, "counts": 4}
    coded = {name: np.mean(x[-1]) for name, x in numbers["bits_up_coded"].items()}
    assert 0.1 < coded["least"] < 0.9 < coded["by_count"] <= 1
    accuracy = {n: np.mean(x, 1) for n, x in numbers["accuracy_by_round"].items()}
    assert max(found[0] for found in accuracy.values()) < 0.3
    assert accuracy["fedpm"][-1] > 0.5
    assert accuracy["fedavg"][-1] > 0.8
    assert np.mean(numbers["mean_network_by_round"][-1]) > 0.75
    # Eight rounds of bits are not one of floats.
    assert numbers["fedavg_rounds_for_as_many_bits"] == 0


def test_masks_that_move_in_training_are_exact_and_of_use(quick):
    numbers = quick("pruning")[1]["demos"]["pruning"]["numbers"]
    assert numbers["counts_are_exact"]
    assert numbers["removed_are_zero"]
    assert numbers["densities"] == [0.1, 0.02]
    means = {name: np.mean(numbers[name], axis=1) for name in ("gradual", "one-shot")}
    assert np.mean(numbers["dense"]) > 0.93
    assert means["gradual"][0] > 0.88
    assert means["gradual"][1] > means["one-shot"][1]
    found = numbers["structured"]
    assert found["regular"]
    assert np.mean(numbers["srigl"][1]) > np.mean(numbers["rigl"][1])
    assert found["units"]["0.02"][0] < 200
    assert found["units"]["0.02"][2] == 10
    assert max(found["difference"].values()) < 1e-4


def test_units_taken_out_change_nothing_but_the_size(quick):
    numbers = quick("compaction")[1]["demos"]["compaction"]["numbers"]
    assert numbers.keys() == {"resnet", "gpt"}
    for found in numbers.values():
        (seen,) = found["seen"].values()
        assert seen["difference"] < 1e-4
        assert abs(seen["masked"] - seen["small"]) < 1e-4
        params, flops = found["parameters"], found["megaflops"]
        assert params["half"] == params["built at half"] < 0.3 * params["dense"]
        assert flops["half"] < 1.05 * flops["built at half"] < 0.32 * flops["dense"]
        halves = {name: size // 2 for name, size in found["units"].items()}
        assert found["widths"]["half"] == halves
    assert np.mean(numbers["resnet"]["quality"]["dense"]) > 0.7
    for bits in numbers["gpt"]["quality"].values():
        assert np.mean(bits) < 5  # of 6.6, if all characters were as likely


def test_what_kernels_meet_tells_what_to_keep(quick):
    record = quick("sentence_encoder")[1]["demos"]["sentence_encoder"]
    numbers, patterns = record["numbers"], {"0.5", "0.3", "2:4"}
    assert record["settings"]["network"] == "small, random weights"
    assert numbers["found"].keys() == patterns
    assert abs(numbers["dense"]["cosine"] - 1) < 1e-5
    for pattern, methods in numbers["found"].items():
        cosine = {name: np.mean(each["cosine"]) for name, each in methods.items()}
        # Wanda is not ahead of magnitude on every network with random weights.
        assert cosine["SparseGPT"] > max(cosine["Wanda"], cosine["magnitude"]), pattern
        assert len(methods["SparseGPT"]["cosine"]) == 2
    by_layer = numbers["found"]["2:4"]["SparseGPT layer by layer"]["cosine"]
    at_once = numbers["found"]["2:4"]["SparseGPT"]["cosine"]
    assert abs(np.mean(by_layer) - np.mean(at_once)) < 0.05
    sizes = numbers["megabytes"]
    assert sizes.keys() == patterns | {"dense"}
    assert sizes["0.3"] < sizes["0.5"] == sizes["2:4"] < sizes["dense"]


def test_tickets_beat_random_masks_of_their_counts(quick):
    numbers = quick("lottery_ticket")[1]["demos"]["lottery_ticket"]["numbers"]
    assert numbers["counts_exact"]
    assert numbers["removed_are_zero"]
    seventh = numbers["rounds_of_controls"].index(7)
    assert 0.2 < numbers["density"][7] < 0.22
    tickets = np.mean(numbers["tickets"]["end"][7])
    assert tickets > np.mean(numbers["random"]["end"][seventh])
    assert tickets > np.mean(numbers["tickets"]["end"][0]) - 0.02


def test_masks_on_untrained_weights_know_digits(quick):
    numbers = quick("deconstructing")[1]["demos"]["deconstructing"]["numbers"]
    signed = np.mean(numbers["constants"]["large_final_same_sign"], axis=-1)
    assert signed.max() > 0.75
    untrained = {name: np.mean(v, axis=-1) for name, v in numbers["untrained"].items()}
    assert untrained["large_final_same_sign"].max() > untrained["random"].max() + 0.3


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


def test_most_masks_are_found_again_in_a_hopfield_network(quick):
    numbers = quick("hopsupsup")[1]["demos"]["hopsupsup"]["numbers"]
    assert numbers["widths"] == [1024]
    found = {name: numbers[name]["1024"] for name in numbers if name != "widths"}
    assert np.mean(found["stored_masks"]) > 0.97
    assert np.mean(found["right_task_nearest"]) > 0.75
    assert np.mean(found["agreement"]) > 0.85
    assert np.mean(found["recovered_masks"]) > 0.75
    assert (found["psi_bytes"], found["mask_bytes"]) == (2 * 4 * 1024**2, 5 * 2 * 128)


def test_tasks_in_superposition_are_kept_and_told_apart(quick):
    numbers = quick("supsup")[1]["demos"]["supsup"]["numbers"]
    assert len(numbers["given"]) == 5
    assert np.min(numbers["given"]) > 0.85
    assert numbers["unchanged"]
    assert numbers["task_inference"]["one_shot superfluous"] > 0.95
    assert numbers["gnu"] > 0.85
    assert numbers["gns"] >= numbers["gnu"]
    assert 1 <= 8 * numbers["bytes_per_task"] / numbers["weights"] < 1.04
    assert 1 <= numbers["stream"]["masks"] <= 12


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


def test_what_is_meta_trained_learns_faster_from_few_samples(quick):
    numbers = quick("meta_ticket")[1]["demos"]["meta_ticket"]["numbers"]
    maml, ticket = (numbers["sinusoids"][n] for n in ("MAML", "Meta-ticket"))
    assert maml["mse_by_step"][5] < maml["mse_by_step"][0] - 0.4
    assert maml["density"] == 1
    assert 0.5 < ticket["density"] < 1  # it has just begun, and the mask has moved
    found = numbers["images"]
    assert found["unchanged"]
    assert 0.3 < found["density"] < 0.9
    first = {name: steps[0] for name, steps in found["accuracy_by_step"].items()}
    assert min(first["MAML"], first["Meta-ticket"]) > first["not meta-trained"] + 0.03


def test_tasks_in_one_network_are_not_forgotten(quick):
    numbers = quick("packnet")[1]["demos"]["packnet"]["numbers"]
    assert numbers["bit_identical"]
    assert numbers["compiled"] == 1
    assert np.max(numbers["forgetting"]["packnet"]) == 0
    assert numbers["owned"] == numbers["allotted"]
    final = {name: np.mean(found) for name, found in numbers["final"].items()}
    assert final["packnet"] > final["naive"] + 0.05
    assert final["packnet"] > final["single"] - 0.1


def test_weights_are_shared_by_tasks_and_nothing_is_forgotten(quick):
    numbers = quick("wsn")[1]["demos"]["wsn"]["numbers"]
    assert all(numbers["bit_identical"].values())
    assert np.max([*numbers["forgetting"].values()]) == 0
    mean = {name: np.mean(found) for name, found in numbers["mean"].items()}
    assert min(mean.values()) > 0.85
    assert mean["WSN"] > mean["PackNet"] - 0.02
    reused = np.mean(numbers["reused"], axis=0)
    assert reused[0] == 0
    assert min(reused[1:]) > 0.1
    assert {len(found) for found in numbers["tried"].values()} == {6}
    assert all(0 < np.mean(share) < 1 for share in numbers["capacity"].values())


def test_masks_tell_tasks_what_they_need_of_a_merged_vector(quick):
    numbers = quick("merging")[1]["demos"]["merging"]["numbers"]
    assert numbers["reached"]["near"]
    for start in ("near", "far"):
        share = {n: np.mean(found) for n, found in numbers["relative"][start].items()}
        single = [share[n] for n in ("task arithmetic", "DARE", "TIES", "consensus")]
        assert share["TALL-masks"] > max(single) + 0.1
        assert share["TALL-masks"] > 0.93
        assert min(single) > share["start"] - 0.1
        assert all(
            0.1 < d < 0.9 for d in np.ravel(numbers["density"][start]["TALL-masks"])
        )
    sizes = numbers["bytes"]
    weights, head = 64 * 300 + 300 + 300 * 100 + 100, 5 * 4 * (100 * 10 + 10)
    assert sizes["separate networks"] == 5 * 4 * weights + head
    assert sizes["one merged network"] == 4 * weights + head
    bits = sizes["TALL-masks"] - 8 * weights - head
    assert 5 * weights / 8 <= bits < 1.15 * 5 * weights / 8
    assert abs(sizes["largest fifth of each"] - sizes["TALL-masks"]) < 100


def test_a_trained_network_is_made_of_a_random_one(quick):
    numbers = quick("strong_ticket")[1]["demos"]["strong_ticket"]["numbers"]
    assert numbers["within_bound"]
    assert numbers["target"] > 0.93
    made = numbers["made"]
    for name in ("nearest", "fewest"):
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


def test_the_loss_chooses_better_than_scores(quick):
    numbers = quick("learned")[1]["demos"]["learned"]["numbers"]
    found = numbers["patterns"]
    assert found["exact"]
    loss = {name: np.mean(each) for name, each in found["loss"].items()}
    assert loss["learned from Wanda"] < loss["SparseGPT"] < loss["Wanda"]
    assert loss["learned from nothing"] < loss["magnitude"]
    assert 0.4 < np.mean(found["overlap"]) < 1
    inputs = numbers["inputs"]
    (pixels, noise), magnitude = (
        np.mean(inputs["kept"][name], axis=-1) for name in ("gates", "by magnitude")
    )
    assert noise < magnitude[1]
    assert pixels > 3 * noise
    assert abs(np.mean(inputs["expected"]) - inputs["target"]) < 0.1
