"""Writes run folders with known numbers, in the form in which training leaves them."""

import csv
import json
import statistics

from keras_nowcast import schema
from keras_nowcast.model.cost import count_unet
from keras_nowcast.records import EPOCH_COLUMNS
from keras_nowcast.training import layer_times

WHY_NO_ENERGY = "NVML: no driver answers"
CONFIG = {
    "data": "data/storms",
    "run_dir": None,
    "depth": 4,
    "filters": 16,
    "center_filters": None,
    "precision": "float32",
    "grid": 96,
    "epochs": 4,
    "batch_per_replica": 4,
    "learning_rate": 1e-3,
    "warmup_epochs": 1.0,
    "schedule": "constant",
    "augment": False,
    "seed": 0,
    "resume": False,
    "power_source": "auto",
    "power_interval_s": 0.1,
    "watts_per_core": None,
    "power_limit_w": None,
    "window_stride": 12,
    "max_windows": None,
    "max_missing": 1.0,
    "train_before": None,
    "test_from": None,
    "authors_split": False,
    "fp16_allreduce": False,
    "tensorboard": False,
}
WINDOWS = 40
SIZES = ("depth", "filters", "center_filters")
PARTS = {  # of the record
    "environment": {"cpu_has_bfloat16": True},
    "training": {"skipped_events": 1, "skipped_steps": 0, "lost_seconds": 2.5},
    "energy": {"lost_joules": None, "not_included": []},
    "memory": {"peak_rss_bytes": 800 * 2**20, "peak_gpu_bytes": None},
}


def write_run(
    folder,
    *,
    seconds=2.0,
    joules=None,
    source="nvml_counter",
    losses=(0.9, 0.6, 0.5, 0.45),
    csi=(0.3, 0.2, 0.1),
    world_size=1,
    status="completed",
    reason=None,
    gpus=(),
    cores=2,
    test_csi=None,
    coverages=None,
    first_samples=WINDOWS,
    roofs=None,
    **fields,
):
    """Writes a run whose every epoch took `seconds` and, unless None, `joules`.

    Args:
      folder: Path to create.
      joules: may be a tuple of the joules of each epoch, "" if unknown.
      losses: validation loss of each epoch; the training loss is the same.
      csi: validation CSI at 16, 74, 133, in every epoch.
      coverages: coverage of the joules of each epoch; None as in folders of earlier versions.
      first_samples: windows of the first epoch whose time was measured.
      roofs: None, or the record's roofs; each layer then takes a hundredth of a second.
      test_csi: None, or the CSI in scores.csv at 16, 74, 133.
      fields: of the configuration or of PARTS, where they differ from CONFIG or PARTS.
    """
    of_epochs = joules if isinstance(joules, tuple) else (joules,) * len(losses)
    if joules is not None:
        joules = statistics.fmean(each for each in of_epochs if each != "")
    parts = _taken_parts(fields)
    config = {**CONFIG, "epochs": len(losses), "run_dir": str(folder), **fields}
    cost = count_unet(config["grid"], 13, 12, *(config[name] for name in SIZES))
    record = {
        "schema": schema.VERSION,
        "status": status,
        "status_reason": reason,
        "config": config,
        "environment": _environment(world_size, cores, gpus) | parts["environment"],
        "model": cost.record(config["precision"], config["batch_per_replica"]),
        "training": _training(config, cost, seconds, losses) | parts["training"],
        "energy": _energy(joules, seconds, source, len(losses)) | parts["energy"],
        "memory": parts["memory"],
    } | ({} if roofs is None else {"roofs": roofs})
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "record.json").write_text(json.dumps(record))
    epochs = _epochs(losses, seconds, of_epochs, csi, coverages, first_samples)
    _write_csv(folder / "epochs.csv", epochs)
    if joules is not None:
        _write_power(folder / "power.csv", joules / seconds)
    if roofs is not None:
        _write_csv(folder / "layers.csv", _layers(config, cost))
    if test_csi:
        _write_csv(folder / "scores.csv", _scores(test_csi))


def _taken_parts(fields):
    """Takes what belongs in PARTS out of `fields` and returns it, the rest as in PARTS."""
    return {
        part: {name: fields.pop(name, default) for name, default in defaults.items()}
        for part, defaults in PARTS.items()
    }


def _environment(world_size, cores, gpus):
    return {
        "python": "3.11.1",
        "tensorflow": "2.21.0",
        "keras": "3.15.1",
        "horovod": "0.28.1",
        "hosts": ["h"],
        "cpu": "EPYC",
        "cores": cores,
        "gpus": [{"uuid": name, "name": name} for name in gpus],
        "world_size": world_size,
        "git_commit": "abc",
        "slurm_job_id": None,
    }


def _epochs(losses, seconds, joules, csi, coverages, first_samples):
    rows = [
        {
            **dict.fromkeys(EPOCH_COLUMNS),
            "epoch": epoch,
            "loss": loss,
            "val_loss": loss,
            "learning_rate": 1e-3,
            "skipped_steps": 0,
            "seconds": seconds,
            "val_seconds": seconds / 10,
            "samples_per_second": WINDOWS / seconds,
            "joules": joules[epoch],
            "samples": WINDOWS if epoch else first_samples,
            "val_mae": 20.0,
            **{f"val_csi_{t}": value for t, value in zip((16, 74, 133), csi, strict=True)},
        }
        for epoch, loss in enumerate(losses)
    ]
    for row, coverage in zip(rows, coverages or (), strict=False):
        row["joules_coverage"] = coverage
    return rows


def _scores(csi):
    return [
        {
            "method": method,
            "threshold": t,
            "lead_minutes": lead,
            "csi": value,
            "mae": 10.0,
            "mse": 300.0,
        }
        for method in ("model", "persistence")
        for lead in (5, "all")
        for t, value in zip((16, 74, 133), csi, strict=True)
    ]


def _layers(config, cost):
    parts = layer_times.parts_of(cost, config["precision"], config["batch_per_replica"])
    return [
        {
            "name": part.name,
            "kind": part.kind,
            "flops": part.flops,
            "bytes": part.bytes,
            "intensity": part.flops / part.bytes,
            "seconds_median": 0.01,
            "seconds_low": 0.008,
            "seconds_high": 0.02,
            "repetitions": 5,
            "flops_per_second": part.flops / 0.01,
        }
        for part in parts
    ]


def _training(config, cost, seconds, losses):
    rate = WINDOWS / seconds
    return {
        "epochs": len(losses),
        "windows_per_epoch": WINDOWS,
        "steps": len(losses) * 10,
        "seconds": seconds * len(losses),
        "seconds_per_epoch": [seconds] * len(losses),
        "samples_per_second": rate,
        "final_loss_scale": None,
        "loss": losses[-1] or None,
        "val_loss": losses[-1] or None,
        "achieved_flops_per_second": rate
        * cost.training_flops(config["precision"], config["batch_per_replica"]),
        "setup_seconds": 10.0,
    }


def _energy(joules, seconds, source, epochs):
    if joules is None:
        return {
            "source": "none",
            "joules": None,
            "joules_reason": WHY_NO_ENERGY,
            "mean_watts": None,
            "joules_per_sample": None,
            "coverage": None,
            "uncertainty_percent": None,
            "devices": [],
            "windows": [],
        }
    return {
        "source": source,
        "joules": joules * epochs,
        "mean_watts": joules / seconds,
        "joules_per_sample": joules / WINDOWS,
        "coverage": 1.0,
        "uncertainty_percent": None if source == "estimate" else 5.0,
        "devices": [{"uuid": "GPU-1", "host": "h"}],
        "windows": [
            {"name": "epoch", "index": i, "start_s": i * seconds, "end_s": (i + 1) * seconds}
            for i in range(epochs)
        ],
    }


def _write_power(path, watts):
    columns = (
        "time_s",
        "host",
        "device",
        "watts",
        "utilization_percent",
        "memory_mib",
        "sm_mhz",
        "temperature_c",
        "throttle_reasons",
    )
    rows = [
        dict.fromkeys(columns, "")
        | {"time_s": i / 10, "host": "h", "device": "GPU-1", "watts": watts}
        for i in range(50)
    ]
    _write_csv(path, rows)


def _write_csv(path, rows):
    with open(path, "w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
