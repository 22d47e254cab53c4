"""Runs a command of etcd-py: launch.py MODULE:FUNCTION NAME [ARGUMENT]...

It is started as `python -I -S -B`: no other package of the machine is seen, no variable or folder of the user
changes what runs, and nothing of what lies beside this file is seen by another Python. Plugins of the agent
have a place of their own. Nothing is written beside the modules, so that nothing is left when they go.
"""

import importlib
import site
import sys
from pathlib import Path

PLUGINS = "/usr/lib/etcd-py-agent/site-packages"


def main() -> object:
    target, *sys.argv = sys.argv[1:]
    module, _, function = target.partition(":")
    sys.path.insert(0, str(Path(__file__).resolve().parent / "site-packages"))
    if module.startswith("etcd_agent"):
        site.addsitedir(PLUGINS)
    return getattr(importlib.import_module(module), function)()


if __name__ == "__main__":
    sys.exit(main())  # type: ignore[arg-type]
