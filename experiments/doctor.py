"""Prints what a run would use on this machine, and any problem with its remedy.

    python experiments/doctor.py
    horovodrun -np 2 python experiments/doctor.py --json

Exit status: 0 if training can start; 1 if it cannot; 2 bad usage.
"""

import json
import sys

from keras_nowcast.config import POWER_SOURCES
from keras_nowcast.flags import Parser
from keras_nowcast.process import EXIT_FAILED, is_first_process, run_script


def main():
    parser = Parser(description=__doc__)
    parser.add_argument("--json", action="store_true", help="as JSON")
    parser.add_argument(
        "--power-source", default="auto", choices=POWER_SOURCES, help="default: %(default)s"
    )
    arguments = parser.parse_args()
    from keras_nowcast.training import doctor

    found = doctor.examine(arguments.power_source)
    if is_first_process():
        print(json.dumps(found, indent=2) if arguments.json else "\n".join(doctor.report(found)))
    if found["problems"]:
        sys.exit(EXIT_FAILED)


if __name__ == "__main__":
    run_script(main)
