#!/usr/bin/env python3
"""A service in Python: every hook, for a daemon whose state is two files beside each other."""

import json
import sys
from pathlib import Path
from typing import Any


def check_settings(request: dict[str, Any]) -> dict[str, Any]:
    return {} if "run" in request["settings"] else {"problem": "settings.run is missing"}


def function(request: dict[str, Any]) -> dict[str, Any]:
    if request["function"] != "total":
        return {"error": f"there is no function {request['function']!r}"}
    return {"result": sum(int(value) for value in request["keys"].values())}


def validate(request: dict[str, Any]) -> dict[str, Any]:
    for file in request["staged"]["files"]:
        if "FORBIDDEN" in Path(file["path"]).read_text():
            return {"problem": {"message": "it holds what is forbidden", "where": file["dest"]}}
    return {}


def reload(request: dict[str, Any]) -> dict[str, Any]:
    run = Path(request["settings"]["run"])
    text = Path(request["applied"]["files"][0]).read_text()
    if "UNLOADABLE" in text:
        return {"error": "the daemon does not take it"}
    run.write_text(text)
    return {"done": f"the daemon reads revision {request['applied']['revision']}"}


def health(request: dict[str, Any]) -> dict[str, Any]:
    sick = "SICK" in Path(request["settings"]["run"]).read_text()
    return {"problem": "the daemon is sick"} if sick else {}


def event(request: dict[str, Any]) -> dict[str, Any]:
    with open(request["settings"]["run"] + ".events", "a") as file:
        print(request["event"]["kind"], file=file)
    return {}


if __name__ == "__main__":
    request = json.load(sys.stdin)
    answer = globals()[request["hook"]](request)
    json.dump({"version": 1, **answer}, sys.stdout)
