"""The mock engine behind Ray Serve's own HTTP proxy, as its documentation has it: a deployment with a FastAPI ingress.

    python -m benchmarks.frontdoor.serve_peer PORT

The environment says which: with ``RAY_SERVE_ENABLE_HA_PROXY=1`` and ``RAY_SERVE_THROUGHPUT_OPTIMIZED=1`` HAProxy passes
requests to the replica's own port; without, Serve's Python proxy passes them to the replica over a handle. It runs
until SIGTERM.
"""

from __future__ import annotations

import signal
import sys
import threading
from typing import Any

import ray
from ray import serve
from ray.serve.config import HTTPOptions

from benchmarks.frontdoor.mock import application

_LOOPBACK = "127.0.0.1"
_OBJECT_STORE_BYTES = 100 * 2**20
MAX_CONCURRENT = 1000


@serve.deployment(num_replicas=1, max_ongoing_requests=MAX_CONCURRENT, ray_actor_options={"num_cpus": 0})
@serve.ingress(application)
class Peer:
    """The application that replicas of llmos serve, as a Serve deployment."""


def main() -> None:
    """Serve on ``sys.argv[1]``."""
    ended = threading.Event()
    ray.init(
        "local",
        num_cpus=2,
        include_dashboard=False,
        object_store_memory=_OBJECT_STORE_BYTES,
        _node_ip_address=_LOOPBACK,
    )
    serve.start(proxy_location="HeadOnly", http_options=HTTPOptions(host=_LOOPBACK, port=int(sys.argv[1])))
    deployment: Any = Peer
    serve.run(deployment.bind(), name="peer", route_prefix="/")
    signal.signal(signal.SIGTERM, lambda *_: ended.set())
    ended.wait()
    serve.shutdown()
    ray.shutdown()


if __name__ == "__main__":
    main()
