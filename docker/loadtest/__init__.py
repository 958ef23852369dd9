"""The load test: l7proxy against a direct connection, HAProxy, nginx and Envoy, in one harness.

Run as `cd docker && python3 -m loadtest COMMAND`. It needs the standard library alone, so that the
client's container is small; what it loads with and runs against is `blast` (C, in this directory).
"""
