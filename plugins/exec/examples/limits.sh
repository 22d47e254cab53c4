#!/bin/sh
# A check in a shell: refuses a file that is longer than settings.max_bytes. jq is not needed for this much.
request=$(cat)
max=$(printf '%s' "$request" | sed -n 's/.*"max_bytes": \([0-9]*\).*/\1/p')
case $request in
*'"hook": "validate"'*)
    printf '%s' "$request" | grep -o '"path": "[^"]*"' | sed 's/"path": "\(.*\)"/\1/' | while read -r path; do
        if [ "$(wc -c <"$path")" -gt "${max:-65536}" ]; then
            printf '{"version": 1, "problem": {"message": "the file is too long", "where": "%s"}}\n' "$path"
            break
        fi
    done
    ;;
esac
