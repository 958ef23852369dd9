"""The verbs of the command line, a file for each.

A verb's file has `add`, which tells argparse about it, and a function that carries it out. Whatever
that function needs is imported inside of it: `l7proxy --help` loads neither YAML nor libbpf, and
`l7proxy check` no network.
"""
