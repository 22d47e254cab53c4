#!/bin/sh
# Pins versions and hashes anew: of what is vendored, from pyproject.toml, and of what builds it. Needs uv.
set -eu
cd "$(dirname "$0")"
uv pip compile --quiet --upgrade --generate-hashes --no-annotate --no-header --python-version 3.11 \
    --python-platform x86_64-manylinux2014 -o requirements.txt ../../pyproject.toml
uv pip compile --quiet --upgrade --generate-hashes --no-annotate --no-header --python-version 3.11 \
    --python-platform x86_64-manylinux2014 -o build-requirements.txt build-requirements.in
