"""Lays out the private packages of the RPMs: layout.py SITE LISTS WHEELS PYTHON...

Unpacks all wheels of WHEELS into SITE, those of one version for several Pythons over one another: their
extension modules have names that tell the Python, and all else must be the same. Compiles for each PYTHON
that is given, and writes to LISTS what the spec needs: files-libs, files-server and files-agent for its
%files, and bundled-libs and so on, the Provides that name what is bundled.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path

ROOT = "/usr/lib/etcd-py/site-packages"

PACKAGE_OF = {
    "apsw": "server", "protobuf": "server", "google-crc32c": "server",
    "jinja2": "agent", "markupsafe": "agent", "pluggy": "agent", "tomli-w": "agent",
    "jsonschema": "agent", "jsonschema-specifications": "agent", "referencing": "agent", "rpds-py": "agent",
    "attrs": "agent", "typing-extensions": "agent", "dnspython": "agent",
}  # fmt: skip
"""Who needs a distribution alone; the others are for both."""
PART_OF = {"etcd_server": "server", "etcd_agent": "agent", "etcd_agent_plugins": "agent"}
"""The same for the packages of etcd-py itself."""
LEFT_OUT = ("RECORD", "WHEEL", "INSTALLER", "top_level.txt")
"""Of dist-info: what speaks of one wheel, not of the distribution."""
NEEDLESS = frozenset({"tests", "sqlite_extra_binaries"})
"""Folders that no program here uses."""


def distribution(wheel: Path) -> tuple[str, str]:
    """Its name as pip writes it, and its version."""
    name, version = wheel.name.split("-")[:2]
    return name.replace("_", "-").lower(), version


def members(archive: zipfile.ZipFile) -> Iterator[str]:
    for name in archive.namelist():
        parts = name.split("/")
        left_out = parts[0].endswith(".dist-info") and parts[-1] in LEFT_OUT
        # Data of wheels goes to bin/ and include/, which nobody needs here.
        needless = (
            name.endswith(("/", ".pyi", ".c", ".h")) or ".data" in parts[0] or NEEDLESS.intersection(parts)
        )
        if not needless and not left_out:
            yield name


def unpack(wheel: Path, site: Path, owners: dict[str, str]) -> None:
    package = PACKAGE_OF.get(distribution(wheel)[0], "libs")
    with zipfile.ZipFile(wheel) as archive:
        for name in members(archive):
            content = archive.read(name)
            target = site / name
            if target.exists() and target.read_bytes() != content:
                raise SystemExit(f"layout: {wheel.name}: {name} differs from that of another wheel")
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(content)
            target.chmod(0o755 if ".so" in target.suffixes else 0o644)
            owners[name] = PART_OF.get(name.split("/")[0], package)


def compile_for(python: str, site: Path) -> None:
    # The files of a package are what they are: no time of theirs is looked at when they are imported.
    how = ["-q", "-j1", "--invalidation-mode", "unchecked-hash", "-d", ROOT, str(site)]
    subprocess.run([python, "-I", "-S", "-m", "compileall", *how], check=True)


def source_of(path: str) -> str:
    """What __pycache__/name.cpython-311.pyc was compiled from."""
    if "/__pycache__/" not in f"/{path}":
        return path
    folder, _, name = path.rpartition("__pycache__/")
    return f"{folder}{name.split('.')[0]}.py"


def lists(site: Path, owners: dict[str, str]) -> dict[str, list[str]]:
    """{package: lines for %files}, with the directories that are in them."""
    found: dict[str, set[str]] = {"libs": set(), "server": set(), "agent": set()}
    for path in site.rglob("*"):
        if path.is_file():
            name = str(path.relative_to(site))
            lines = found[owners[source_of(name)]]
            lines.add(f"{ROOT}/{name}")
            folders = list(Path(name).parents)[:-1]
            lines.update(f"%dir {ROOT}/{folder}" for folder in folders)
    return {package: sorted(lines) for package, lines in found.items()}


def main() -> None:
    site, to, wheels = (Path(each) for each in sys.argv[1:4])
    shutil.rmtree(site, ignore_errors=True)
    to.mkdir(parents=True, exist_ok=True)
    owners: dict[str, str] = {}
    found = sorted(wheels.glob("*.whl"))
    for wheel in found:
        unpack(wheel, site, owners)
    for python in sys.argv[4:]:
        compile_for(python, site)
    for package, lines in lists(site, owners).items():
        (to / f"files-{package}").write_text("\n".join(lines) + "\n")
    for package in ("libs", "server", "agent"):
        bundled = {
            each for each in map(distribution, found)
            if each[0] != "etcd-py" and PACKAGE_OF.get(each[0], "libs") == package
        }  # fmt: skip
        provides = [
            f"Provides: bundled(python3dist({name})) = {version}" for name, version in sorted(bundled)
        ]
        (to / f"bundled-{package}").write_text("\n".join(provides) + "\n")


if __name__ == "__main__":
    main()
