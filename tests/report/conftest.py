"""The synthetic study that the tests of several figures draw."""

import drawn
import pytest
import study_runs


@pytest.fixture(scope="session")
def study(tmp_path_factory):
    """Runs with the data of every figure."""
    folder = tmp_path_factory.mktemp("study")
    for filters in (4, 16):
        for precision in ("float32", "mixed_bfloat16"):
            for world_size in (1, 2):
                study_runs.write_run(
                    folder / f"f{filters}-{precision}-np{world_size}",
                    filters=filters,
                    precision=precision,
                    world_size=world_size,
                    seconds=filters / world_size,
                    joules=filters * (10.0 if precision == "float32" else 7.0),
                )
    return drawn.read(folder)
