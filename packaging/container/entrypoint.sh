#!/bin/sh
# Process 1 of the container: the server itself, which ends in order when it gets SIGTERM.
set -eu
case ${1:-} in
etcd | etcd-py | */etcd | */etcd-py) shift ;;
'' | -* | verify | version) ;;
*) exec "$@" ;;
esac
exec /usr/bin/etcd-py "$@"
