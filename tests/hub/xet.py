"""What the stand-in understands of Xet uploads: chunks in xorbs, files as ranges of chunks in shards.

After the public protocol (https://huggingface.co/docs/xet): enough to put a file together again from what the real
client sent. Xet's own hashes (BLAKE3) are taken as the client gives them; sizes and structure are checked.
"""

from __future__ import annotations

import secrets
import struct
from dataclasses import dataclass, field

from hub.state import Refusal

_TAG = bytes.fromhex("4846526570 6f4d65746144617461005569 67456a7b815783a5bdd95ccdd14aa9".replace(" ", ""))
_ENTRY = 48
_VERIFICATION, _METADATA = 1 << 31, 1 << 30
_LAST = b"\xff" * 32


@dataclass
class XetStore:
    """Xorbs (hash → chunks) and files (hash → content).

    ``place``: the first part of its addresses. The client remembers by address what it has sent, in memory and on disk;
    a later stand-in on the same port must not be taken for this one.
    """

    place: str = field(default_factory=lambda: f"xet-{secrets.token_hex(8)}")
    xorbs: dict[str, list[bytes]] = field(default_factory=dict)
    files: dict[str, bytes] = field(default_factory=dict)

    def add_xorb(self, name: str, body: bytes) -> None:
        self.xorbs[name] = chunks_of(body)

    def add_shard(self, body: bytes) -> None:
        """Puts every file of a shard together.

        Raises:
            Refusal: no shard, a xorb that was not uploaded, or lengths that are not what the shard says.
        """
        if body[:32] != _TAG:
            raise Refusal(400, "not a shard")
        position = _ENTRY
        while body[position : position + 32] != _LAST:
            position = self._file(body, position)

    def _file(self, body: bytes, position: int) -> int:
        name = hexadecimal(body[position : position + 32])
        flags, count = struct.unpack_from("<II", body, position + 32)
        content = b""
        for number in range(count):
            at = position + _ENTRY * (1 + number)
            xorb = hexadecimal(body[at : at + 32])
            _, size, start, end = struct.unpack_from("<IIII", body, at + 32)
            part = b"".join(self.xorbs.get(xorb, [])[start:end])
            if len(part) != size:
                raise Refusal(400, f"xorb {xorb} was not uploaded, or has other chunks")
            content += part
        self.files[name] = content
        return position + _ENTRY * (1 + count + (count if flags & _VERIFICATION else 0) + (1 if flags & _METADATA else 0))


def hexadecimal(digest: bytes) -> str:
    """A hash as Xet writes it: four little-endian 64-bit numbers."""
    return "".join(f"{number:016x}" for number in struct.unpack("<4Q", digest))


def chunks_of(body: bytes) -> list[bytes]:
    """The chunks of a xorb: each has 8 bytes of header (version, sizes of 3 bytes, compression); a footer may follow."""
    chunks, position = [], 0
    while position + 8 <= len(body) and body[position] == 0:
        packed, size = (int.from_bytes(body[position + at : position + at + 3], "little") for at in (1, 5))
        chunks.append(_unpacked(body[position + 8 : position + 8 + packed], body[position + 4], size))
        position += 8 + packed
    return chunks


def _unpacked(content: bytes, scheme: int, size: int) -> bytes:
    """0: as it stands; 1: an LZ4 frame; 2: an LZ4 frame of the bytes in four groups, every fourth byte in one."""
    if scheme == 0:
        plain = content
    else:
        import pyarrow

        plain = pyarrow.decompress(content, decompressed_size=size, codec="lz4", asbytes=True)
    if len(plain) != size:
        raise Refusal(400, "a chunk has another size than its header says")
    return _ungrouped(plain) if scheme == 2 else plain


def _ungrouped(content: bytes) -> bytes:
    out, position = bytearray(len(content)), 0
    for group in range(4):
        size = len(range(group, len(content), 4))
        out[group::4] = content[position : position + size]
        position += size
    return bytes(out)
