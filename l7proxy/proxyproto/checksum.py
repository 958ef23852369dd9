"""CRC-32C, which PROXY headers of version 2 can bring."""

from __future__ import annotations


# RFC 4960 appendix B: the polynomial 0x1EDC6F41, reflected.
def _crc_row(value: int) -> int:
    for _ in range(8):
        value = value >> 1 ^ (0x82F63B78 if value & 1 else 0)
    return value


_CRC_TABLE = tuple(_crc_row(value) for value in range(256))


def crc32c(data: bytes) -> int:
    """CRC-32C (Castagnoli) of `data`."""
    table, value = _CRC_TABLE, 0xFFFF_FFFF
    for byte in data:
        value = value >> 8 ^ table[(value ^ byte) & 0xFF]
    return value ^ 0xFFFF_FFFF
