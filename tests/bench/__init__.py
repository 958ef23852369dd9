"""What a routing decision costs, measured in this process: `python3 -m tests.bench.routing`.

What a byte, a request and a connection cost is measured by the load test, `docker/loadtest/`.
"""
