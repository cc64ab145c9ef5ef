"""A processor with AMX as one without: the system refuses tiles to this process and to all that it starts.

Every library has a switch of its own for that, or none. What all of them need is the system's leave to use tiles
(``arch_prctl(ARCH_REQ_XCOMP_PERM)``; Linux, "Using XSTATE features in user space applications"), so a seccomp filter
answers that one call with EPERM. A library that asks takes its next best way; one that multiplies by tiles without
asking is ended by the system, and so cannot spoil a figure unseen.
"""

from __future__ import annotations

import ctypes
import os
import platform
import sys

ARCH_PRCTL, REQ_XCOMP_PERM, TILE_DATA = 158, 0x1023, 18  # of x86-64
PR_SET_NO_NEW_PRIVS, PR_SET_SECCOMP, FILTER = 38, 22, 2
NUMBER, FIRST_ARGUMENT = 0, 16  # offsets in struct seccomp_data
ALLOW, REFUSE = 0x7FFF0000, 0x00050000 | 1  # the latter with EPERM

LOAD, IF_EQUAL, RETURN = 0x20, 0x15, 0x06  # classic BPF; a jump has lines to skip if true, if false
PROGRAM = (
    (LOAD, 0, 0, NUMBER),
    (IF_EQUAL, 0, 3, ARCH_PRCTL),
    (LOAD, 0, 0, FIRST_ARGUMENT),
    (IF_EQUAL, 0, 1, REQ_XCOMP_PERM),
    (RETURN, 0, 0, REFUSE),
    (RETURN, 0, 0, ALLOW),
)


class _Line(ctypes.Structure):
    _fields_ = (("code", ctypes.c_ushort), ("then", ctypes.c_ubyte), ("other", ctypes.c_ubyte), ("k", ctypes.c_uint))


class _Program(ctypes.Structure):
    _fields_ = (("length", ctypes.c_ushort), ("lines", ctypes.POINTER(_Line)))


def tiles_refused() -> bool:
    """Whether this process may not use tiles; true as well where the processor or the system has none."""
    if platform.machine() != "x86_64" or sys.platform != "linux":
        return True
    return ctypes.CDLL(None).syscall(ARCH_PRCTL, REQ_XCOMP_PERM, TILE_DATA) != 0


def restart_without_amx(module: str) -> None:
    """Starts ``python -m module`` anew with the same arguments, without tiles; returns where they are refused already.

    Anew, since libraries may have looked for tiles, and leave that was given lasts until another program is started.
    Raises OSError if the system takes no filter.
    """
    if tiles_refused():
        return
    _refuse_tiles()
    sys.stdout.flush()
    os.execv(sys.executable, [sys.executable, "-m", module, *sys.argv[1:]])


def _refuse_tiles() -> None:
    lines = (_Line * len(PROGRAM))(*(_Line(*line) for line in PROGRAM))
    program, libc = _Program(len(PROGRAM), lines), ctypes.CDLL(None, use_errno=True)
    if libc.prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) or libc.prctl(PR_SET_SECCOMP, FILTER, ctypes.byref(program)):
        number = ctypes.get_errno()
        raise OSError(number, f"AMX cannot be masked: the system takes no seccomp filter ({os.strerror(number)})")
