"""What a stage of the acceptance run finds, written at once, and the report of all stages."""

import datetime
import json
import time

from keras_nowcast.files import write_json, written_whole

PASS, FAIL, NOT_TRIED = "pass", "fail", "not tried"
NOT_ENDED = "it has not ended"


class CannotTry(Exception):
    """This machine lacks what a stage or a check needs; the message says what."""


class Findings:
    """The findings of one stage; each is on disk when the call that adds it returns.

    Args:
      path: the stage's JSON file.
      stage: name of the stage.
      question: what it answers, one line.
    """

    def __init__(self, path, stage, question):
        self._path = path
        self._began = time.monotonic()
        self._content = {
            "stage": stage,
            "question": question,
            "verdict": NOT_TRIED,
            "reason": NOT_ENDED,
            "started": datetime.datetime.now().isoformat(timespec="seconds"),
            "seconds": 0.0,
            "checks": [],
            "measured": {},
        }
        self._write()

    @property
    def any(self):
        """True if there is a check or a measurement."""
        return bool(self._content["checks"] or self._content["measured"])

    def check(self, what, passed, measured, wanted):
        """Adds a check: what was measured, as text, and the rule that decides it."""
        self._add(what, PASS if passed else FAIL, measured, wanted)

    def not_tried(self, what, reason):
        """Adds a check that this machine does not allow."""
        self._add(what, NOT_TRIED, None, str(reason))

    def measured(self, name, value):
        """Adds a measurement: a value, a dict, or a list of dicts with the same keys."""
        self._content["measured"][name] = value
        self._write()

    def end(self, reason=None, failed=False):
        """Decides the verdict: fail if a check failed or `failed` is true, else pass if any passed.

        Args:
          reason: why the stage ended early, or None.
          failed: True if that is a fault rather than something that the machine lacks.
        """
        verdicts = {each["verdict"] for each in self._content["checks"]}
        order = (FAIL, PASS, NOT_TRIED)
        verdict = next((each for each in order if each in verdicts), NOT_TRIED)
        self._content["verdict"] = FAIL if failed else verdict
        self._content["reason"] = reason
        self._write()
        return self._content["verdict"]

    def _add(self, what, verdict, measured, wanted):
        self._content["checks"].append(
            {"check": what, "verdict": verdict, "measured": measured, "wanted": wanted}
        )
        self._write()

    def _write(self):
        self._content["seconds"] = time.monotonic() - self._began
        write_json(self._path, self._content)


def end_for_the_stage(path, stage, question, reason, failed=True):
    """Writes the verdict of a stage whose process ended without one; its findings are kept.

    Args:
      path, stage, question: as for Findings.
      reason: why the process ended.
      failed: False if the stage did not cause it; the verdict is then fail only if a check failed.
    """
    if not path.exists():
        Findings(path, stage, question)
    content = json.loads(path.read_text())
    failed = failed or any(each["verdict"] == FAIL for each in content["checks"])
    write_json(path, content | {"verdict": FAIL if failed else NOT_TRIED, "reason": reason})


def write_report(path, title, lines, stages):
    """Writes the Markdown report.

    Args:
      path: the file.
      title: its heading.
      lines: what was run, one list item each.
      stages: the content of the stages' files, in order; a stage without one as
        {"stage", "question", "verdict", "reason"}.
    """
    text = [f"# {title}", "", *(f"- {line}" for line in lines), "", "## Verdicts", ""]
    text += _table(
        [
            {
                "stage": each["stage"],
                "question": each["question"],
                "verdict": f"**{each['verdict'].upper()}**",
                "checks passed": _counted(each.get("checks", [])),
                "seconds": each.get("seconds"),
                "why": each.get("reason"),
            }
            for each in stages
        ]
    )
    for each in stages:
        text += ["", f"## {each['stage']}: {each['verdict']}", "", each["question"], ""]
        if each.get("reason"):
            text += [f"Reason: {each['reason']}", ""]
        if each.get("checks"):
            text += _table(each["checks"])
        for name, value in each.get("measured", {}).items():
            text += ["", *_measured(name, value)]
    with written_whole(path) as beside:
        beside.write_text("\n".join(text) + "\n")


def signed(percent, digits):
    """Returns a percentage as text with its sign; what rounds to zero has none."""
    rounded = round(percent, digits)
    return f"{rounded:+.{digits}f}%" if rounded else f"{0:.{digits}f}%"


def _counted(checks):
    passed = sum(each["verdict"] == PASS for each in checks)
    return f"{passed} of {len(checks)}"


def _measured(name, value):
    if isinstance(value, list) and value and isinstance(value[0], dict):
        return [f"{name}:", "", *_table(value)]
    if isinstance(value, dict):
        return [f"{name}:", "", *_table([{"": k, "value": v} for k, v in value.items()])]
    return [f"{name}: {_cell(value)}"]


def _table(rows):
    columns = list(dict.fromkeys(key for row in rows for key in row))
    cells = [[_cell(row.get(key)) for key in columns] for row in rows]
    rule = ["---"] * len(columns)
    return ["| " + " | ".join(each) + " |" for each in (columns, rule, *cells)]


def _cell(value):
    if value is None:
        return ""
    if isinstance(value, list):
        return ", ".join(_cell(each) for each in value)
    text = f"{value:.4g}" if isinstance(value, float) else str(value)
    return " ".join(text.replace("|", "\\|").split())
