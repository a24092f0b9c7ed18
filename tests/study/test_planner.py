"""Predictions for models that were not run, from runs that follow a known law."""

import dataclasses
import json

import numpy as np
import pytest
import study_runs

from keras_nowcast import records
from keras_nowcast.config import RunConfig
from keras_nowcast.errors import InputError
from keras_nowcast.model.cost import count_unet
from keras_nowcast.study import intervals, laws, planner, table

RATES = {  # seconds per FLOP, per byte, per layer and per byte of the update
    "float32": (5e-12, 3e-11, 2e-4, 1.5e-10),
    "mixed_bfloat16": (2e-12, 2.5e-11, 3e-4, 1.2e-10),
}
WATTS = 40
STEPS = 10


def seconds_of(depth, filters, precision):
    cost = count_unet(96, 13, 12, depth, filters)
    terms = laws.step_terms(cost, precision, study_runs.WINDOWS / STEPS)
    return STEPS * float(np.dot(terms, RATES[precision]))


def write_study(folder, depths=(2, 3, 4), filters=(4, 8, 16), noise=0.0, joules=True):
    rng = np.random.default_rng(0)
    for depth in depths:
        for width in filters:
            for precision in RATES:
                seconds = seconds_of(depth, width, precision) * (1 + noise * rng.normal())
                cost = count_unet(96, 13, 12, depth, width)
                counted = cost.state_bytes + cost.step_bytes(precision, 4)
                study_runs.write_run(
                    folder / f"d{depth}-f{width}-{precision}",
                    depth=depth,
                    filters=width,
                    precision=precision,
                    seconds=seconds,
                    joules=WATTS * seconds if joules else None,
                    peak_rss_bytes=int(600e6 + 1.2 * counted),
                )


def config(**fields):
    fields = {"data": "data/storms", "grid": 96, "epochs": 4, "precision": "float32", **fields}
    return RunConfig(**fields)


def predict(folder, *cells):
    return planner.predict(cells, records.read_runs([folder]))


def test_set_up_is_that_of_one_start(tmp_path):
    write_study(tmp_path)
    file = tmp_path / "d3-f8-float32" / "record.json"
    record = json.loads(file.read_text())
    record["training"]["setup_seconds"] = 20.0
    record["training"]["starts"] = [{"world_size": 1, "steps": steps} for steps in (0, 15)]
    file.write_text(json.dumps(record))
    (found,) = predict(tmp_path, (config(depth=5, filters=16), 1, None))
    seconds = 4 * seconds_of(5, 16, "float32")
    assert found.wall_seconds.value == pytest.approx(10 + 1.1 * seconds, rel=1e-4)


def test_an_exact_law_is_found(tmp_path):
    write_study(tmp_path)
    (found,) = predict(tmp_path, (config(depth=5, filters=16), 1, None))
    seconds = 4 * seconds_of(5, 16, "float32")
    assert found.seconds.value == pytest.approx(seconds, rel=1e-6)
    assert found.seconds.low == pytest.approx(seconds) == pytest.approx(found.seconds.high)
    assert found.joules.value == pytest.approx(WATTS * seconds, rel=1e-6)
    # Setup takes 10 s, and validation a tenth of training.
    assert found.wall_seconds.value == pytest.approx(10 + 1.1 * seconds, rel=1e-4)
    cost = count_unet(96, 13, 12, 5, 16)
    counted = cost.state_bytes + cost.step_bytes("float32", 4)
    assert found.memory_bytes.value == pytest.approx(600e6 + 1.2 * counted, rel=1e-6)
    assert found.parameters == cost.trainable_parameters
    assert found.is_extrapolated and not found.is_estimate and not found.reasons


def test_intervals_hold_what_they_say(tmp_path):
    write_study(tmp_path, depths=(2, 3, 4, 5), filters=(4, 8, 16, 32), noise=0.05, joules=False)
    planned = planner.Planner(table.read(records.read_runs([tmp_path])))
    errors = planned.errors["seconds"]
    assert len(errors.percent) == 32 and 1 < errors.median < 10
    inside = []
    for depth in (2, 3, 4, 5):
        for width in (6, 12, 24, 48):
            for precision in RATES:
                found = planned.predict(config(depth=depth, filters=width, precision=precision), 1)
                true = 4 * seconds_of(depth, width, precision)
                inside.append(found.seconds.low <= true <= found.seconds.high)
    assert found.seconds.share == 0.95 and np.mean(inside) >= 0.9
    # Each of the four largest cells of each precision, from the twelve smaller ones.
    checks = [each for found in planned.largest("seconds").values() for each in found.checks]
    assert len(checks) == 8 and sum(each.is_inside for each in checks) >= 7


def test_a_size_beyond_the_measured_ones_says_how_far(tmp_path):
    write_study(tmp_path, noise=0.05)
    inside, wider, deeper, small = predict(
        tmp_path,
        (config(depth=3, filters=12), 1, None),
        (config(depth=2, filters=32), 1, None),
        (config(depth=5, filters=16), 1, None),
        (config(depth=1, filters=4), 1, None),
    )
    assert not inside.is_extrapolated and inside.note == ""
    assert wider.size == "FLOPs" and 1.5 < wider.ratio < 4
    assert wider.note == f"{wider.ratio:.3g} times the largest measured (FLOPs)"
    assert planner.text_row(wider)["note"] == wider.note
    # One level more quadruples the parameters, and hardly adds FLOPs.
    assert deeper.note == f"{deeper.ratio:.3g} times the largest measured (parameters)"
    assert 3.5 < deeper.ratio < 4.2
    assert small.ratio < 1 and "times the smallest measured (" in small.note
    for name in ("seconds", "joules", "wall_seconds", "memory_bytes"):
        near, far = getattr(inside, name), getattr(wider, name)
        assert far.high / far.value > near.high / near.value, name


def test_the_errors_are_printed(tmp_path):
    write_study(tmp_path, noise=0.05, joules=False)
    planned = planner.Planner(table.read(records.read_runs([tmp_path])))
    lines = planner.error_lines(planned)
    assert lines[1].startswith("  time of training: median ") and lines[1].endswith("18 cells")
    assert "energy of training: not measured here" in lines[3]
    largest = [line for line in lines if "times the size" in line]
    # Three quantities were measured in two precisions.
    assert len(largest) == 6
    assert largest[0].startswith("  time of training, float32: 4 of 4 inside the 95% interval; ")
    assert planned.largest("joules") == {}


def test_more_steps_epochs_and_windows(tmp_path):
    write_study(tmp_path)
    cell = config(depth=3, filters=8)
    once, twice, known = predict(
        tmp_path, (cell, 1, None), (dataclasses.replace(cell, epochs=8), 1, None), (cell, 1, 80)
    )
    assert twice.seconds.value == pytest.approx(2 * once.seconds.value)
    assert known.seconds.value == pytest.approx(2 * once.seconds.value)
    assert not once.is_extrapolated


def test_several_processes(tmp_path):
    write_study(tmp_path)
    # 40 windows: two processes need 5 steps, each 1.6 times as long as a step of one process.
    study_runs.write_run(
        tmp_path / "two",
        depth=3,
        filters=8,
        world_size=2,
        seconds=1.6 * seconds_of(3, 8, "float32") / 2,
    )
    two, other = predict(
        tmp_path,
        (config(depth=4, filters=16), 2, None),
        (config(depth=4, filters=16, precision="mixed_bfloat16"), 2, None),
    )
    expected = 4 * 1.6 * seconds_of(4, 16, "float32") / 2
    assert two.seconds.value == pytest.approx(expected, rel=1e-3)
    assert "2 processes in mixed_bfloat16" in other.reasons["seconds"]


def test_without_runs_there_are_reasons():
    (found,) = planner.predict([(config(depth=3, filters=8), 1, 40)], [])
    assert found.seconds is found.joules is found.memory_bytes is None
    assert set(found.reasons) == set(laws.QUANTITIES)
    assert planner.total([found], "seconds") == (None, 1)


def test_what_was_never_measured_is_not_predicted(tmp_path):
    write_study(tmp_path, joules=False)
    half, data = predict(
        tmp_path,
        (config(precision="mixed_float16"), 1, None),
        (config(data="elsewhere"), 1, None),
    )
    assert half.seconds is None and "mixed_float16" in half.reasons["seconds"]
    assert study_runs.WHY_NO_ENERGY in half.reasons["joules"]
    assert "how many windows" in data.reasons["seconds"]
    assert data.memory_bytes is not None


def test_joules_of_an_estimate_stay_one(tmp_path):
    for width in (4, 8, 16, 32):
        study_runs.write_run(
            tmp_path / str(width),
            filters=width,
            joules=10.0 * width,
            seconds=width,
            source="estimate",
        )
    (found,) = predict(tmp_path, (config(depth=4, filters=12), 1, None))
    assert found.is_estimate
    assert "(an ESTIMATE, not measured)" in planner.text_row(found)["energy"]


def test_joules_are_of_one_kind_of_sensor(tmp_path):
    """Estimates are ten times the joules, and one cell has both: the sensor of most runs counts."""
    write_study(tmp_path)
    for width in (4, 8, 16, 32):
        study_runs.write_run(
            tmp_path / f"estimate{width}",
            filters=width,
            source="estimate",
            seed=1,
            joules=10 * WATTS * seconds_of(4, width, "float32"),
            seconds=seconds_of(4, width, "float32"),
        )
    planned = planner.Planner(table.read(records.read_runs([tmp_path])))
    assert (planned.energy_source, planned.energy_left_out) == ("nvml_counter", 4)
    assert planned.energy_note == (
        "Energy is as nvml_counter measures it; 4 runs with other sensors left out."
    )
    found = planned.predict(config(depth=5, filters=16), 1)
    assert found.joules.value == pytest.approx(WATTS * 4 * seconds_of(5, 16, "float32"), rel=1e-6)
    assert not found.is_estimate


def test_where_all_have_one_sensor_none_is_left_out(tmp_path):
    write_study(tmp_path)
    planned = planner.Planner(table.read(records.read_runs([tmp_path])))
    assert planned.energy_left_out == 0 and planned.energy_note == ""
    assert planner.Planner([]).energy_source is None


def test_joules_of_two_sensors_are_not_compared(tmp_path):
    study_runs.write_run(tmp_path / "a", seconds=2.0, joules=50.0)
    study_runs.write_run(tmp_path / "b", filters=8, seconds=3.0, joules=20.0)
    runs = table.read(records.read_runs([tmp_path]))
    skill = table.choose_skill(runs)
    found = planner.reaching(runs, skill, 0.1)
    assert [each.run.name for each in found] == ["b", "a"]
    assert planner.cost_of_reaching(found) == ("joules", None)
    study_runs.write_run(tmp_path / "c", filters=4, seconds=4.0, joules=10.0, source="rapl")
    found = planner.reaching(table.read(records.read_runs([tmp_path])), skill, 0.1)
    assert [each.run.name for each in found] == ["a", "b", "c"]
    assert planner.cost_of_reaching(found) == (
        "seconds",
        "different sensors measured their energy, nvml_counter and rapl",
    )
    study_runs.write_run(tmp_path / "d", filters=2)
    found = planner.reaching(table.read(records.read_runs([tmp_path])), skill, 0.1)
    assert "not all of them" in planner.cost_of_reaching(found)[1]


def test_other_machines_have_no_say(tmp_path):
    write_study(tmp_path)
    for width in (4, 8, 16):
        study_runs.write_run(tmp_path / f"big{width}", filters=width, seconds=1e-3, cores=64)
    planned = planner.Planner(table.read(records.read_runs([tmp_path])))
    assert planned.left_out == 3 and planned.machine["cores"] == 2
    assert planned.errors["seconds"].median < 0.01


def predictions():
    def interval(value):
        return intervals.Interval(value, value / 2, value * 2, 0.9)

    return [
        planner.Prediction({}, parameters, seconds=interval(seconds))
        for parameters, seconds in ((10, 1.0), (30, 3.0), (20, 9.0))
    ] + [planner.Prediction({}, 99, reasons={"seconds": "unknown"})]


def test_the_largest_within_a_budget():
    likely, sure = planner.largest_within(predictions(), "seconds", 4)
    assert (likely.parameters, sure.parameters) == (30, 10)
    assert planner.largest_within(predictions(), "seconds", 0.1) == (None, None)


def test_a_total_says_what_it_lacks():
    whole, without = planner.total(predictions(), "seconds")
    assert (whole.value, whole.low, whole.high, without) == (13, 6.5, 26, 1)


def test_the_cheapest_that_reached_a_skill(tmp_path):
    study_runs.write_run(tmp_path / "small", filters=4, seconds=2.0, csi=(0.3,) * 3)
    study_runs.write_run(tmp_path / "large", filters=8, seconds=5.0, csi=(0.4,) * 3)
    runs = table.read(records.read_runs([tmp_path]))
    skill = table.choose_skill(runs)
    found = planner.reaching(runs, skill, 0.25)
    assert [(each.run.name, each.seconds, each.epoch) for each in found] == [
        ("small", 2.0, 1),
        ("large", 5.0, 1),
    ]
    assert [each.run.name for each in planner.reaching(runs, skill, 0.35)] == ["large"]
    assert planner.reaching(runs, skill, 0.5) == []


def test_an_earlier_run_may_have_what_is_refused_today(tmp_path):
    """A cosine with no more epochs than the warm-up; any schedule costs the same."""
    write_study(tmp_path)
    study_runs.write_run(
        tmp_path / "largest", depth=5, filters=32, schedule="cosine", warmup_epochs=9.0
    )
    planned = planner.Planner(table.read(records.read_runs([tmp_path])))
    assert planned.next_sizes()


def test_candidates(tmp_path):
    write_study(tmp_path)
    planned = planner.Planner(table.read(records.read_runs([tmp_path])))
    found = planned.candidates(depths=[2, 6], filters=[4], precisions=["float32"], processes=[1, 2])
    # 96 pixels cannot be halved six times.
    assert [(each.depth, count) for each, count in found] == [(2, 1), (2, 2)]
    assert found[0][0].data == "data/storms" and found[0][0].epochs == 4
    sizes = {(f.setting["depth"], f.setting["filters"]) for f in planned.next_sizes(most=99)}
    assert sizes == {(5, 4), (5, 8), (5, 16), (5, 32), (2, 32), (3, 32), (4, 32)}
    with pytest.raises(InputError, match="`runs` must hold completed runs"):
        planner.Planner([]).candidates()
