"""l7proxy: a layer-7 TCP proxy whose bytes are moved by the kernel."""

__version__ = "0.1.0"
