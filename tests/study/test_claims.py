"""The claims' answers, from run folders whose numbers are known."""

import pytest
import study_runs

from keras_nowcast import records
from keras_nowcast.study import claims, table


def answers(tmp_path, **margin):
    return claims.claims(table.read(records.read_runs([tmp_path])), **margin)


def test_without_data_nothing_is_guessed(tmp_path):
    study_runs.write_run(tmp_path / "a")
    found = answers(tmp_path)
    assert len(found) == 4
    assert not any(claim.is_measured for claim in found)
    assert all(claim.answer.startswith("not measured here: it needs") for claim in found)


def test_mixed_precision(tmp_path):
    for seed in (0, 1):
        study_runs.write_run(
            tmp_path / f"a{seed}",
            seconds=3.0,
            joules=300.0,
            seed=seed,
            losses=(0.9, 0.7, 0.5),
            csi=(0.3 + seed / 100, 0.2, 0.1),
        )
        # Twice as fast, but it needs three epochs for the loss that float32 reached in two.
        study_runs.write_run(
            tmp_path / f"b{seed}",
            seconds=1.5,
            joules=180.0,
            seed=seed,
            precision="mixed_bfloat16",
            losses=(0.95, 0.8, 0.7),
            csi=(0.3, 0.2, 0.1),
        )
    claim = answers(tmp_path)[0]
    assert claim.is_measured
    (row,) = claim.rows
    assert row["throughput"] == "2.00 (2.00 to 2.00, 2 times)"
    # 2 x 3 s compared with 3 x 1.5 s, at the level 0.7 of the one that converges more slowly.
    assert row["speed to the same loss"] == "1.33 (1.33 to 1.33, 2 times)"
    assert row["energy"] == "0.60 (0.60 to 0.60, 2 times)"
    # Differences 0 and -0.00333 of two seeds: 12.706 x 0.002357 / sqrt(2) around their mean.
    assert row["skill"] == (
        "float32 0.2017, mixed_bfloat16 0.2000; not distinguishable and not shown equivalent: "
        "-0.0017 (-0.0228 to +0.0195) over 2 pairs of seeds, standard deviation 0.0024; margin "
        "0.0040"
    )
    assert (
        "was not distinguishable and not shown equivalent in the only cell with several seeds, by "
        "the 95% confidence interval of the mean difference over 2 common seeds and a margin of 2% "
        "of float32's score." in claim.answer
    )
    assert "throughput was 2.00 times that of float32" in claim.answer


def test_a_skill_beyond_chance_is_worse(tmp_path):
    for seed in (0, 1):
        study_runs.write_run(tmp_path / f"a{seed}", seed=seed, csi=(0.3, 0.3, 0.3))
        study_runs.write_run(
            tmp_path / f"b{seed}",
            seed=seed,
            precision="mixed_float16",
            csi=(0.2, 0.2, 0.2 + seed / 100),
        )
    claim = answers(tmp_path)[0]
    assert "worse: -0.0983 (-0.1195 to -0.0772)" in claim.rows[0]["skill"]
    assert "worse in the only cell" in claim.answer
    assert "Energy: not measured here." in claim.answer
    assert claim.missing == ("Energy not measured here: NVML: no driver answers.",)


def test_a_difference_smaller_than_the_seeds_spread_is_told_where_every_seed_has_it(tmp_path):
    """Scores 0.1 to 0.3 depending on the seed, always 0.01 worse: only pairs of seeds show it."""
    for seed, (score, less) in enumerate(((0.1, 0.009), (0.2, 0.010), (0.3, 0.011))):
        study_runs.write_run(tmp_path / f"a{seed}", seed=seed, csi=(score,) * 3)
        study_runs.write_run(
            tmp_path / f"b{seed}", seed=seed, precision="mixed_bfloat16", csi=(score - less,) * 3
        )
    claim = answers(tmp_path)[0]
    # 4.303 x 0.001 / sqrt(3) = 0.00248
    assert claim.rows[0]["skill"] == (
        "float32 0.2000, mixed_bfloat16 0.1900; worse: -0.0100 (-0.0125 to -0.0075) over 3 pairs "
        "of seeds, standard deviation 0.0010; margin 0.0040"
    )
    assert "worse in the only cell with several seeds" in claim.answer


def write_precisions(folder, differences):
    """Writes a pair of runs per difference; float32 has the skills 0.19, 0.20 and 0.21."""
    for seed, difference in enumerate(differences):
        score = 0.19 + seed / 100
        study_runs.write_run(folder / f"a{seed}", seed=seed, csi=(score,) * 3)
        study_runs.write_run(
            folder / f"b{seed}",
            seed=seed,
            precision="mixed_bfloat16",
            csi=(score + difference,) * 3,
        )


@pytest.mark.parametrize(
    "differences, margin, words",
    [
        # Mean 0.001, standard deviation 0.001. The 95% interval is -+ 4.303 x 0.001 / sqrt(3),
        # and the one-sided tests allow 2.920 x 0.001 / sqrt(3) = 0.00169: 0.00269 is the least
        # margin, 1.343% of float32's mean score of 0.2.
        ((0.000, 0.001, 0.002), 1.35, "equivalent: +0.0010 (-0.0015 to +0.0035)"),
        (
            (0.000, 0.001, 0.002),
            1.34,
            "not distinguishable and not shown equivalent: +0.0010 (-0.0015 to +0.0035)",
        ),
        # Mean 0.004, the same deviation: 0.00569 is the least margin, 2.843%.
        (
            (0.003, 0.004, 0.005),
            2.85,
            "better, but within the margin: +0.0040 (+0.0015 to +0.0065)",
        ),
        ((0.003, 0.004, 0.005), 2.84, "better: +0.0040 (+0.0015 to +0.0065)"),
        ((-0.003, -0.004, -0.005), 2.85, "worse, but within the margin: -0.0040"),
    ],
)
def test_equal_skill_is_shown_by_two_one_sided_tests(tmp_path, differences, margin, words):
    write_precisions(tmp_path, differences)
    (claim, *_) = answers(tmp_path, margin_percent=margin)
    assert f"; {words}" in claim.rows[0]["skill"]
    assert claim.rows[0]["skill"].endswith(f"; margin {0.002 * margin:.4f}")
    assert f"a margin of {margin:g}% of float32's score" in claim.answer
    assert any(f"the margin, {margin:g}% of float32's score" in note for note in claim.notes)
    verdict = words.partition(":")[0].replace(", but", " but")
    assert f") was {verdict} in the only cell with several seeds" in claim.answer


def test_the_margin_is_a_percentage_of_the_common_seeds_of_float32(tmp_path):
    write_precisions(tmp_path, (0.0, 0.001, 0.002))
    study_runs.write_run(tmp_path / "alone", seed=9, csi=(0.9,) * 3)
    assert answers(tmp_path)[0].rows[0]["skill"].endswith("; margin 0.0040")


@pytest.mark.parametrize("seeds", [((0,), (0,)), ((0, 1), (1, 2)), ((0, 0), (0, 0))])
def test_one_seed_of_both_tells_nothing_of_chance(tmp_path, seeds):
    for name, precision, mine in zip("ab", ("float32", "mixed_bfloat16"), seeds, strict=True):
        for number, seed in enumerate(mine):
            study_runs.write_run(tmp_path / f"{name}{number}", seed=seed, precision=precision)
    claim = answers(tmp_path)[0]
    assert claim.rows[0]["skill"].endswith("; 1 common seed, so not distinguished from chance")
    assert "Whether the skill differs: not measured here" in claim.answer
    assert "one seed cannot distinguish a difference from chance" in claim.answer


def test_a_processor_without_half_precision_is_the_reason(tmp_path):
    study_runs.write_run(tmp_path / "a", cpu_has_bfloat16=False)
    assert answers(tmp_path)[0].answer == (
        "not measured here: this processor has no half-precision arithmetic. A CPU with bfloat16 "
        "instructions, or a GPU of compute capability 7 or more, would measure it."
    )
    study_runs.write_run(tmp_path / "b", cpu_has_bfloat16=False, gpus=("P100",), seed=1)
    assert "it needs a completed run in float32" in answers(tmp_path)[0].answer


def test_runs_that_differ_in_more_are_no_pair(tmp_path):
    study_runs.write_run(tmp_path / "a")
    study_runs.write_run(tmp_path / "b", precision="mixed_bfloat16", batch_per_replica=8)
    study_runs.write_run(tmp_path / "c", precision="mixed_bfloat16", cores=64)
    study_runs.write_run(tmp_path / "d", precision="mixed_bfloat16", status="failed")
    assert not answers(tmp_path)[0].is_measured


def test_more_parameters_against_more_energy(tmp_path):
    # 4 to 16 filters is +1,489%, the closest of these to the paper's.
    for filters, joules in ((2, 50.0), (4, 100.0), (16, 163.22)):
        study_runs.write_run(
            tmp_path / f"f{filters}", filters=filters, joules=joules, seconds=joules / 50
        )
    study_runs.write_run(tmp_path / "shallow", depth=3, filters=64, joules=1.0)
    claim = answers(tmp_path)[1]
    assert "depth 4, 4 filters to depth 4, 16 filters in float32" in claim.answer
    assert (
        "+1,489% trainable parameters cost +63.2% energy and +63.2% training time per window."
        in claim.answer
    )
    ends, nearest = claim.rows
    assert (ends["from"], ends["energy"]) == ("depth 4, 2 filters", "+226.4%")
    assert nearest["energy"] == "+63.2%"
    assert any("uncertain by up to 5%" in note for note in claim.notes)
    assert "63.22" in claim.paper and "1,549" in claim.paper


def test_an_estimate_is_marked_wherever_it_shows(tmp_path):
    for filters, joules in ((4, 100.0), (16, 150.0)):
        for precision in ("float32", "mixed_bfloat16"):
            study_runs.write_run(
                tmp_path / f"{filters}{precision}",
                filters=filters,
                precision=precision,
                joules=joules,
                source="estimate",
                csi=(filters / 100,) * 3,
            )
    mixed, more, larger, _ = answers(tmp_path)
    mark = "(an ESTIMATE, not measured)"
    for claim in (mixed, more, larger):
        assert mark in claim.answer
        assert all(any(mark in text for text in row.values()) for row in claim.rows)


def test_two_sensors_give_no_ratio(tmp_path):
    study_runs.write_run(tmp_path / "a", joules=100.0)
    study_runs.write_run(tmp_path / "b", joules=50.0, precision="mixed_bfloat16", source="estimate")
    claim = answers(tmp_path)[0]
    assert claim.rows[0]["energy"] == "not measured here"
    (missing,) = claim.missing
    assert "different sensors, estimate and nvml_counter" in missing


def test_energy_of_some_comparisons_is_not_called_missing_of_all(tmp_path):
    study_runs.write_run(tmp_path / "a", joules=100.0)
    study_runs.write_run(tmp_path / "b", joules=50.0, precision="mixed_bfloat16")
    study_runs.write_run(tmp_path / "c", filters=4)
    study_runs.write_run(tmp_path / "d", filters=4, precision="mixed_bfloat16")
    claim = answers(tmp_path)[0]
    assert "energy was 0.50 times that of float32" in claim.answer
    (missing,) = claim.missing
    assert missing.startswith("Energy of 1 of 2 comparisons not measured here: ")


def test_joules_of_two_sensors_share_no_front(tmp_path):
    study_runs.write_run(tmp_path / "a", joules=100.0, csi=(0.1, 0.1, 0.1))
    study_runs.write_run(
        tmp_path / "b", seconds=3.0, joules=90.0, source="rapl", filters=32, csi=(0.2, 0.2, 0.2)
    )
    (row,) = answers(tmp_path)[2].rows
    assert row["cost"] == "+50.0% training time per epoch"


def test_larger_models(tmp_path):
    for filters, seconds, csi in ((4, 1.0, 0.2), (8, 2.0, 0.1), (16, 3.0, 0.25)):
        study_runs.write_run(
            tmp_path / f"f{filters}", filters=filters, seconds=seconds, csi=(csi,) * 3
        )
    claim = answers(tmp_path)[2]
    (row,) = claim.rows  # 8 filters cost more than 4 and score worse, so they are not on the front
    assert (row["from"], row["to"]) == ("depth 4, 4 filters", "depth 4, 16 filters")
    assert row["cost"] == "+200.0% training time per epoch" and row["skill"] == "+0.0500"
    assert row["spread of seeds"] == "not measured here: both models need two seeds"
    assert "2 of 3 models are on the Pareto front" in claim.answer


def test_a_lower_loss_is_more_skill(tmp_path):
    for filters, loss in ((4, 0.5), (16, 0.4)):
        study_runs.write_run(
            tmp_path / f"f{filters}",
            filters=filters,
            seconds=filters,
            losses=(0.9, loss),
            csi=("", "", ""),
        )
    claim = answers(tmp_path)[2]
    assert claim.rows[0]["skill"] == "-0.1000" and "lower is better" in claim.notes[0]


def test_data_parallel(tmp_path):
    study_runs.write_run(tmp_path / "one", seconds=4.0, losses=(0.9, 0.6, 0.5))
    study_runs.write_run(
        tmp_path / "two", seconds=2.5, world_size=2, losses=(0.95, 0.7, 0.6), joules=None
    )
    claim = answers(tmp_path)[3]
    (row,) = claim.rows
    assert (row["speed-up"], row["efficiency"]) == ("1.60", "80%")
    assert row["speed to the same loss"] == f"{8.0 / 7.5:.2f}"
    assert any("share the cores" in note and "2 cores" in note for note in claim.notes)


def test_processes_are_compared_by_the_rule_of_their_learning_rate(tmp_path):
    """One process has no rule: it is compared with all. Runs without the key were linear."""
    study_runs.write_run(tmp_path / "one", seconds=4.0, lr_scaling="none")
    study_runs.write_run(tmp_path / "again", seconds=5.0, seed=1)
    study_runs.write_run(tmp_path / "two", seconds=2.0, seed=1, world_size=2)
    study_runs.write_run(tmp_path / "root", seconds=2.0, world_size=2, lr_scaling="sqrt")
    study_runs.write_run(tmp_path / "four", seconds=1.0, world_size=4, lr_scaling="sqrt")
    study_runs.write_run(tmp_path / "more", seconds=1.0, world_size=4, filters=4)
    study_runs.write_run(tmp_path / "most", seconds=0.5, world_size=8, filters=4, lr_scaling="sqrt")
    found = {
        (row["from"], row["processes"], row["learning rate"], row["speed-up"])
        for row in answers(tmp_path)[3].rows
    }
    assert found == {
        ("1", "2", "linear", "2.50"),
        ("1", "2", "sqrt", "2.00"),
        ("1", "4", "sqrt", "4.00"),
    }


def test_gpus_of_their_own_share_nothing(tmp_path):
    study_runs.write_run(tmp_path / "one", seconds=4.0, gpus=("V100",))
    study_runs.write_run(tmp_path / "two", seconds=2.0, world_size=2, gpus=("V100", "V100"))
    claim = answers(tmp_path)[3]
    assert claim.rows[0]["efficiency"] == "100%"
    assert not any("share" in note for note in claim.notes)


@pytest.mark.parametrize("status", ["failed", "interrupted"])
def test_only_completed_runs_count(tmp_path, status):
    study_runs.write_run(tmp_path / "a")
    study_runs.write_run(tmp_path / "b", precision="mixed_bfloat16", status=status)
    assert not any(claim.is_measured for claim in answers(tmp_path))
