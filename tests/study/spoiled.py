"""Run folders that are spoiled in one way each."""

import csv
import json


def edit(run, change):
    """Rewrites record.json after `change(record)`."""
    record = json.loads((run / "record.json").read_text())
    change(record)
    (run / "record.json").write_text(json.dumps(record))


def text(name, content):
    """Returns a spoiler that replaces a file."""
    mode = "write_bytes" if isinstance(content, bytes) else "write_text"
    return lambda run: getattr(run / name, mode)(content)


def part(section, **values):
    """Returns a spoiler that sets keys of a section of the record."""
    return lambda run: edit(run, lambda record: record[section].update(values))


def without(section, name):
    """Returns a spoiler that removes a key of the record."""
    inner = (lambda record: record[section]) if section else (lambda record: record)
    return lambda run: edit(run, lambda record: inner(record).pop(name))


def replaced(name, *replacements):
    """Returns a spoiler that replaces texts in a file."""

    def spoil(run):
        content = (run / name).read_text()
        for old, new in replacements:
            assert old in content
            content = content.replace(old, new)
        (run / name).write_text(content)

    return spoil


def cut(name, letters):
    """Returns a spoiler that removes the last letters of a file."""
    return lambda run: (run / name).write_text((run / name).read_text()[:-letters])


def column(run, name):
    """Removes a column of epochs.csv."""
    with open(run / "epochs.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    with open(run / "epochs.csv", "w", newline="") as file:
        kept = [each for each in rows[0] if each != name]
        writer = csv.DictWriter(file, kept, extrasaction="ignore")
        writer.writeheader()
        writer.writerows(rows)


def cells(run, value):
    """Sets every cell of epochs.csv."""
    header, *rows = (run / "epochs.csv").read_text().splitlines()
    line = ",".join([value] * len(header.split(",")))
    (run / "epochs.csv").write_text("\n".join([header, *([line] * len(rows))]) + "\n")


def link(run, name):
    """Replaces a file by a link to nothing."""
    (run / name).unlink()
    (run / name).symlink_to("gone")


def folder(run, name):
    """Replaces a file by a folder."""
    (run / name).unlink()
    (run / name).mkdir()


# {how: (spoiler, what the reason names)}
LEFT_OUT = {
    "record empty": (text("record.json", ""), "record.json must be JSON. Received: an empty file"),
    "record cut": (cut("record.json", 300), "record.json must be JSON"),
    "record list": (text("record.json", "[]"), "JSON object. Received: a list"),
    "record null": (text("record.json", "null"), "JSON object. Received: null"),
    "record no key": (text("record.json", "{}"), "`status`. Received: nothing"),
    "record bytes": (text("record.json", b"\xff\xfe\0"), "record.json must be JSON"),
    "record deep": (text("record.json", "[" * 100_000), "record.json must be JSON"),
    "record NaN": (text("record.json", '{"schema": NaN}'), "NaN is no JSON number"),
    "record folder": (lambda run: folder(run, "record.json"), "record.json must be a readable"),
    "record link": (lambda run: link(run, "record.json"), "a link that leads nowhere"),
    "no status": (without(None, "status"), "`status`"),
    "odd status": (lambda run: edit(run, lambda r: r.update(status=["x"])), "`status`"),
    "newer": (
        lambda run: edit(run, lambda r: r.update(schema=99)),
        "`schema` 5 or lower. Received: 99, so the run was made by a newer version; update",
    ),
    "odd version": (lambda run: edit(run, lambda r: r.update(schema="3")), "`schema`"),
    "no config": (without(None, "config"), "config.depth"),
    "config text": (lambda run: edit(run, lambda r: r.update(config="x")), "`config`"),
    "no grid": (without("config", "grid"), "`config.grid` that was used. Received: nothing"),
    "no depth": (without("config", "depth"), "`config.depth`. Received: nothing"),
    "depth text": (part("config", depth="four"), "integer as `config.depth`. Received: the text"),
    "depth high": (part("config", depth=9), "from 1 to 6 as `config.depth`. Received: 9"),
    "depth half": (part("config", depth=2.5), "an integer as `config.depth`. Received: 2.5"),
    "grid odd": (part("config", grid=47), "sizes of a model that is possible"),
    "filters true": (part("config", filters=True), "integer as `config.filters`. Received: true"),
    "seed null": (part("config", seed=None), "integer as `config.seed`. Received: null"),
    "filters huge": (part("config", filters=10**40), "integer as `config.filters`"),
    "precision auto": (part("config", precision="auto"), "`config.precision` that was used"),
    "precision odd": (part("config", precision="float8"), "one of auto, float32"),
    "seconds text": (part("training", seconds="12,5"), "number as `training.seconds`"),
    "rate negative": (
        part("training", samples_per_second=-5),
        "a number of at least 0 as `training.samples_per_second`. Received: -5",
    ),
    "rate inf": (part("training", samples_per_second=float("inf")), "Infinity is no JSON number"),
    "rate 1e400": (replaced("record.json", ("20.0", "1e400")), "`training.samples_per_second`"),
    "starts odd": (part("training", starts=[3]), "list of objects as `training.starts`"),
    "start odd": (
        part("training", starts=[{"world_size": "two", "steps": 0}]),
        "an integer as `training.starts[0].world_size`",
    ),
    "windows text": (part("training", windows_per_epoch="many"), "windows_per_epoch"),
    "no ranks": (part("environment", world_size=0), "above 0 as `environment.world_size`"),
    "ranks absent": (without("environment", "world_size"), "`environment.world_size`"),
    "cpu number": (part("environment", cpu=7), "a text as `environment.cpu`. Received: 7"),
    "cpu half": (part("environment", cpu="\ud800"), "a text as `environment.cpu`"),
    "gpus text": (part("environment", gpus="A100"), "list of objects as `environment.gpus`"),
    "gpu name": (part("environment", gpus=[{"name": 1}]), "`environment.gpus[0].name`"),
    "no size": (without("model", "trainable_parameters"), "`model.trainable_parameters`"),
    "coverage": (part("energy", coverage=1.5), "from 0 to 1 as `energy.coverage`"),
    "source": (part("energy", source="sun"), "as `energy.source`. Received: the text 'sun'"),
    "energy list": (lambda run: edit(run, lambda r: r.update(energy=[])), "`energy`"),
    "window": (part("energy", windows=[{"start_s": "now"}]), "`energy.windows[0].start_s`"),
    "epochs absent": (lambda run: (run / "epochs.csv").unlink(), "epochs.csv must have 4 rows"),
    "epochs empty": (text("epochs.csv", ""), "columns `epoch`, `loss`"),
    "epochs header": (
        lambda run: (run / "epochs.csv").write_text(
            (run / "epochs.csv").read_text().splitlines()[0] + "\n"
        ),
        "must have 4 rows, one for each epoch of the run. Received: 0",
    ),
    "epochs seconds": (lambda run: column(run, "seconds"), "epochs.csv must have the columns `sec"),
    "epochs val_loss": (lambda run: column(run, "val_loss"), "epochs.csv must have the columns"),
    "epochs words": (lambda run: cells(run, "N/A"), "as `epoch` in row 1. Received: the text 'N/A"),
    "epochs blank": (lambda run: cells(run, ""), "`epoch` in row 1. Received: an empty cell"),
    "epochs cut": (cut("epochs.csv", 40), "epochs.csv must end with a line break"),
    "epochs cut in a number": (cut("epochs.csv", 2), "epochs.csv must end with a line break"),
    "epochs twice": (lambda run: cells(run, "0"), "epoch 1 in row 2. Received: 0"),
    "epochs ;": (replaced("epochs.csv", (",", ";")), "separated by commas"),
    "epochs comma": (replaced("epochs.csv", ("20.0", "20,0")), "cells in row 1, as in its first"),
    "epochs nan": (
        replaced("epochs.csv", ("20.0", "nan")),
        "as `samples_per_second` in row 1",
    ),
    "epochs bytes": (text("epochs.csv", bytes(range(256))), "epochs.csv must be CSV"),
    "epochs folder": (lambda run: folder(run, "epochs.csv"), "epochs.csv must be a readable file"),
    "power empty": (text("power.csv", ""), "power.csv must have the columns `time_s`"),
    "power other": (text("power.csv", "a,b\n1,2\n"), "power.csv must have the columns `time_s`"),
    "power folder": (lambda run: folder(run, "power.csv"), "power.csv must be a readable file"),
    "scores words": (
        text("scores.csv", "method,threshold,lead_minutes,csi\nmodel,16,all,N/A\n"),
        "a number as `csi` in row 1. Received: the text 'N/A'",
    ),
    "scores other": (text("scores.csv", "a,b\n1,2\n"), "scores.csv must have the columns"),
    "layers words": (text("layers.csv", "name\nhead\n"), "layers.csv must have the columns"),
}
# These are used, as far as they go.
READ = {
    "record BOM": lambda run: (run / "record.json").write_bytes(
        b"\xef\xbb\xbf" + (run / "record.json").read_bytes()
    ),
    "epochs BOM": lambda run: (run / "epochs.csv").write_bytes(
        b"\xef\xbb\xbf" + (run / "epochs.csv").read_bytes()
    ),
    "epochs blank lines": lambda run: (run / "epochs.csv").write_text(
        (run / "epochs.csv").read_text() + "\n\n"
    ),
    "power cut": cut("power.csv", 12),
    "power words": replaced("power.csv", ("0.3,h,GPU-1,25.0", "0.3,h,GPU-1,N/A")),
    "power zeros": replaced("power.csv", ("0.3,h", "\0\0\0,h")),
    "no power": lambda run: (run / "power.csv").unlink(),
    "no environment": text("environment.json", ""),
    "no config file": lambda run: (run / "config.json").unlink(),
    "running": text("running.json", "\0\0\0"),
    "gpu without a name": part("environment", gpus=[{"uuid": "x"}]),
    "gpus null": part("environment", gpus=None),
    "no devices": without("energy", "devices"),
    "no windows": without("energy", "windows"),
    "windows of nothing": part("energy", windows=[{}]),
    "no memory": without(None, "memory"),
    "no training": without(None, "training"),
    "later key": part("config", flag_of_a_later_version=3),
    "rate null": part("training", samples_per_second=None),
    "dollars": part("energy", devices=[{"uuid": "$x", "host": "$\\frac{"}]),
}
