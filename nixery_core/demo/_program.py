"""The programs of the demo: static ELF files of about 280 bytes that print one file.

They are put together here, byte by byte, so that the demo needs no compiler and holds no binary that
cannot be read.  nix/demo/program.nix writes the same ones.
"""

from __future__ import annotations

import struct

from nixery_core.errors import InvalidPlatform
from nixery_core.model.platform import AMD64, ARM64, Platform

_ADDRESS = 0x400000
_HEADERS = 64 + 56

# open(path, O_RDONLY); while ((n = read(fd, sp, 4096)) > 0) write(1, sp, n); exit(n < 0)
_X86_64 = bytes.fromhex(
    "488d3d51000000"  # lea rdi, [rip + path]
    "31f6 b802000000 0f05"  # xor esi, esi; mov eax, 2; syscall           open
    "85c0 7838"  # test eax, eax; js fail
    "89c3 4881ec00100000"  # mov ebx, eax; sub rsp, 4096
    "89df 4889e6 ba00100000"  # loop: mov edi, ebx; mov rsi, rsp; mov edx, 4096
    "31c0 0f05"  # xor eax, eax; syscall                                  read
    "85c0 781d 7417"  # test eax, eax; js fail; je done
    "89c2 bf01000000 4889e6"  # mov edx, eax; mov edi, 1; mov rsi, rsp
    "b801000000 0f05"  # mov eax, 1; syscall                              write
    "85c0 7806 ebd5"  # test eax, eax; js fail; jmp loop
    "31ff eb05"  # done: xor edi, edi; jmp exit
    "bf01000000"  # fail: mov edi, 1
    "b83c000000 0f05"  # exit: mov eax, 60; syscall                       exit
)  # path:

_AARCH64 = bytes.fromhex(
    "21030010"  # adr x1, path
    "600c8012 02008052 08078052 010000d4"  # mov w0, #-100; mov w2, #0; mov w8, #56; svc #0    openat
    "2002f837"  # tbnz w0, #31, fail
    "f303002a ff0740d1"  # mov w19, w0; sub sp, sp, #4096
    "e003132a e1030091 02008252"  # loop: mov w0, w19; mov x1, sp; mov w2, #4096
    "e8078052 010000d4"  # mov w8, #63; svc #0                                                 read
    "2001f837 20010034"  # tbnz w0, #31, fail; cbz w0, exit
    "e203002a 20008052 e1030091"  # mov w2, w0; mov w0, #1; mov x1, sp
    "08088052 010000d4"  # mov w8, #64; svc #0                                                 write
    "4000f837 f3ffff17"  # tbnz w0, #31, fail; b loop
    "20008052"  # fail: mov w0, #1
    "c80b8052 010000d4"  # exit: mov w8, #94; svc #0                                           exit_group
)  # path:

_CODE = {AMD64: _X86_64, ARM64: _AARCH64}
PLATFORMS = tuple(_CODE)
"""What the programs are written for."""


def printing_program(file: str, platform: Platform) -> bytes:
    r"""Return a program that prints *file*; it ends with that path, so it refers to the store path in it.

    >>> printing_program("/etc/motd", AMD64)[:4]
    b'\x7fELF'
    """
    code = _CODE.get(platform)
    if code is None:
        raise InvalidPlatform(f"the demo has no programs for {platform}", hint="use linux/amd64 or linux/arm64")
    path = file.encode() + b"\0"
    size = _HEADERS + len(code) + len(path)
    # 64 bits, little endian, System V; an executable, entered behind the headers; no sections
    header = b"\x7fELF\x02\x01\x01" + bytes(9)
    header += struct.pack("<HHIQQQI", 2, platform.elf_machine, 1, _ADDRESS + _HEADERS, 64, 0, 0)
    header += struct.pack("<HHHHHH", 64, 56, 1, 0, 0, 0)
    # PT_LOAD, to be read and executed: the whole file
    header += struct.pack("<IIQQQQQQ", 1, 5, 0, _ADDRESS, _ADDRESS, size, size, 0x10000)
    return header + code + path
