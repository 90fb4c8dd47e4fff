"""Compiles HLSL to DXIL with DXC's library, in this process: `compile.py LIBRARY FILE...`. Called by tests/dxc.

The first line of a file says what is compiled: `// ENTRY PROFILE`. Errors are printed, and warnings counted by kind, which wgpu does not ask for.
Exit code 1 where a file does not compile.
"""

import collections
import ctypes
import os
import re
import sys
import uuid

# As wgpu-hal's dx12/shader_compilation.rs has it, but for -no-warnings.
ARGUMENTS = ["-HV", "2018", "-Ges"]
UTF8 = 65001


class Buffer(ctypes.Structure):
    _fields_ = [("start", ctypes.c_void_p), ("bytes", ctypes.c_size_t), ("encoding", ctypes.c_uint32)]


def guid(text):
    return uuid.UUID(text).bytes_le


class Interface:
    """A pointer to an object whose first word points to its methods."""

    def __init__(self, pointer):
        self.pointer = pointer

    def call(self, index, *arguments):
        methods = ctypes.cast(self.pointer, ctypes.POINTER(ctypes.POINTER(ctypes.c_void_p)))[0]
        kinds = [ctypes.c_void_p] + [type(argument) for argument in arguments]
        method = ctypes.CFUNCTYPE(ctypes.c_int32, *kinds)(methods[index])
        return method(self.pointer, *arguments)

    def release(self):
        self.call(2)


# Places of methods behind the three of IUnknown.
COMPILE = 3
GET_STATUS, GET_RESULT, GET_ERRORS = 3, 4, 5


def text_of(blob):
    def word(index, kind):
        methods = ctypes.cast(blob.pointer, ctypes.POINTER(ctypes.POINTER(ctypes.c_void_p)))[0]
        return ctypes.CFUNCTYPE(kind, ctypes.c_void_p)(methods[index])(blob.pointer)

    start, length = word(3, ctypes.c_void_p), word(4, ctypes.c_size_t)
    return ctypes.string_at(start, length).decode(errors="replace").rstrip("\0")


def main(library, paths):
    create = ctypes.CDLL(os.path.abspath(library)).DxcCreateInstance
    create.restype = ctypes.c_int32
    pointer = ctypes.c_void_p()
    status = create(
        guid("73e22d93-e6ce-47f3-b5bf-f0664f39c1b0"),
        guid("228b4687-5a6a-4730-900c-9702b2203f54"),
        ctypes.byref(pointer),
    )
    if status != 0:
        sys.exit(f"DXC has no compiler: {status:#x}")
    compiler = Interface(pointer.value)
    failed, warnings = [], collections.Counter()
    for path in paths:
        with open(path, "rb") as file:
            source = file.read()
        entry, profile = source.split(b"\n", 1)[0].decode().split()[1:]
        words = ["-E", entry, "-T", profile, *ARGUMENTS]
        arguments = (ctypes.c_wchar_p * len(words))(*words)
        buffer = Buffer(ctypes.cast(ctypes.c_char_p(source), ctypes.c_void_p), len(source), UTF8)
        result = ctypes.c_void_p()
        status = compiler.call(
            COMPILE,
            ctypes.c_void_p(ctypes.addressof(buffer)),
            ctypes.c_void_p(ctypes.addressof(arguments)),
            ctypes.c_uint32(len(words)),
            ctypes.c_void_p(),
            ctypes.c_char_p(guid("58346cda-dde7-4497-9461-6f87af5e0659")),
            ctypes.c_void_p(ctypes.addressof(result)),
        )
        if status != 0:
            sys.exit(f"{path}: DXC fails: {status & 0xFFFFFFFF:#x}")
        result = Interface(result.value)
        outcome, errors = ctypes.c_int32(), ctypes.c_void_p()
        result.call(GET_STATUS, ctypes.c_void_p(ctypes.addressof(outcome)))
        result.call(GET_ERRORS, ctypes.c_void_p(ctypes.addressof(errors)))
        said = ""
        if errors.value:
            errors = Interface(errors.value)
            said = text_of(errors)
            errors.release()
        dxil = ctypes.c_void_p()
        result.call(GET_RESULT, ctypes.c_void_p(ctypes.addressof(dxil)))
        made = ""
        if dxil.value:
            dxil = Interface(dxil.value)
            made = text_of(dxil)
            dxil.release()
        result.release()
        if outcome.value != 0 or not made.startswith("DXBC"):
            failed.append(path)
            if len(failed) <= 5:
                print(f"{path}:\n{said}")
        for line in said.splitlines():
            found = re.search(r"warning: (.*)", line)
            # There is no library that signs on this system.
            if found and "signing library" not in line:
                # Without the names in it, so that a kind is counted once.
                warnings[re.sub(r"'[^']*'", "'…'", found[1])] += 1
    print(f"{len(paths) - len(failed)} of {len(paths)} files compile")
    for warning, count in warnings.most_common():
        print(f"{count} times: {warning}")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], sys.argv[2:]))
