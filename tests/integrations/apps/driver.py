"""The application beside the worker: sends and aborts tasks as it is told, a line of JSON each. Runs in a queue's own
environment.

    python -m tests.integrations.apps.driver celery
    {"send": "slow", "args": ["key", 2.0]}      -> {"id": "..."}
    {"abort": "<id>"}                           -> {"id": "<id>"}
"""

from __future__ import annotations

import importlib
import json
import sys


def main(queue: str) -> None:
    app = importlib.import_module(f"tests.integrations.apps.{queue}_app")
    print(json.dumps({"ready": True}), flush=True)
    for line in sys.stdin:
        asked = json.loads(line)
        if "abort" in asked:
            app.abort(asked["abort"])
            answer = {"id": asked["abort"]}
        else:
            answer = {"id": app.send(asked["send"], asked.get("args", []), asked.get("options", {}))}
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main(sys.argv[1])
