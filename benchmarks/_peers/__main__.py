"""The process of one competitor: reads requests as JSON lines, answers each with one line."""

import importlib
import json
import os
import sys
import time
import traceback
import warnings
from importlib import metadata

from _peers._task import task_of


def serve(module, requests, answers) -> None:
    """Answer requests until there are no more."""
    training = inference = None
    for line in requests:
        request = json.loads(line)
        command = request.pop("do")
        try:
            if command == "prepare":
                task = task_of(request["task"])
                training, answer = module.Training(task, task.load()), {"note": getattr(module, "NOTE", "")}
            elif command == "epochs":
                answer = {"seconds": training.epochs(request["n"])}
            elif command == "prepare_inference":
                inference, answer = module.Inference(task_of(request.pop("task")), **request), {}
            elif command in ("score_samples", "transform"):
                answer = {"seconds": getattr(inference, command)()}
            else:
                answer = getattr(module, command)(**request)
            answer = {**answer, "at": time.monotonic()}
        except Exception as error:
            traceback.print_exc()
            answer = {"error": f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"[:200]}
        print(json.dumps(answer), file=answers, flush=True)


def main() -> None:
    """Import the competitor and serve; whatever it prints goes to the log, not between the answers."""
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    warnings.simplefilter("ignore")
    module = importlib.import_module(f"_peers.{sys.argv[1]}")
    versions = {name: metadata.version(name) for name in getattr(module, "PACKAGES", ())}
    print(json.dumps({"versions": versions, "at": time.monotonic()}), file=answers, flush=True)
    serve(module, sys.stdin, answers)


if __name__ == "__main__":
    main()
