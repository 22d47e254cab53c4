#!/bin/sh
# Every test of the project: the wire's own in Rust, then Python's, some files beside each other, because many of them
# wait for servers. Style, types and floors are `make check`.
set -eu
cd "$(dirname "$0")/.."
command -v cargo >/dev/null 2>&1 || PATH="$HOME/.cargo/bin:$PATH"
for crate in wire benchmarks/loadgen; do
    cargo fmt --manifest-path "$crate/Cargo.toml" --check
    cargo clippy --quiet --manifest-path "$crate/Cargo.toml" --all-targets -- -D warnings
    cargo test --quiet --manifest-path "$crate/Cargo.toml"
done
exec .venv/bin/python -m pytest -n "$(($(nproc) + 1))" --dist loadfile --durations 20 "$@"
