"""The benchmark: what a byte, a request and a connection cost through each contender.

    python3 -m tests.bench            (from the top of the checkout; as root, see `machine.isolate`)

`run` goes round robin over the contenders; `workloads` says what one sample is, `contenders` how
each proxy is set up and why, `cpu` how processor time is counted, `report` what is printed.
"""
