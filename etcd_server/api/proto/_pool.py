"""The descriptor pool that holds this package's messages, and nothing else.

protobuf refuses to define one full name twice in one pool. The default pool of a process is shared with every
other library: `grpc.health.v1` with grpcio-health-checking, `etcdserverpb` with any other etcd stubs. In a pool
of their own our messages meet none of them. The generated modules call `Default()` where they would have called
that of `google.protobuf.descriptor_pool` (tools/generate_messages.py makes that one change).
"""

from google.protobuf.descriptor_pool import DescriptorPool

_POOL = DescriptorPool()


def Default() -> DescriptorPool:
    """The pool of this package; the name is the one that generated code uses."""
    return _POOL
