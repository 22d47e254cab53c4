#!/bin/sh
# check_glibc.sh VERSION DIRECTORY: all shared objects below DIRECTORY load with a glibc of VERSION. Needs objdump.
set -eu
limit=$1
find "$2" -name '*.so*' -type f | {
    highest=0
    while read -r object; do
        needed=$(objdump -T "$object" | grep -o 'GLIBC_[0-9.]*' | sed 's/GLIBC_//' | sort -V | tail -n 1)
        [ -n "$needed" ] || continue
        highest=$(printf '%s\n%s\n' "$highest" "$needed" | sort -V | tail -n 1)
        if [ "$(printf '%s\n%s\n' "$limit" "$needed" | sort -V | tail -n 1)" != "$limit" ]; then
            echo "check_glibc: $object needs glibc $needed, expected at most $limit" >&2
            exit 1
        fi
    done
    echo "check_glibc: highest symbol version GLIBC_$highest, allowed $limit" >&2
}
