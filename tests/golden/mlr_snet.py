"""Converts a policy of MLR-SNet (arXiv:2007.14546) from the authors' .pth file to safetensors, for SchedulePolicy::from_safetensors.

    python3 tests/golden/mlr_snet.py "mlr_snet 1.pth" mlr_snet_1.safetensors        # the standard library is enough

The authors publish three files in the folder meta-test of https://github.com/xjtushujun/MLR-SNet. They are in PyTorch's format from before
version 1.6: pickles of a magic number, a version and the sizes of types, then the pickle of a dictionary of tensors, then the list of the
storages' keys, then every storage as a count of 8 bytes and its elements. The unpickler creates dictionaries and tensors and nothing else.

    python3 tests/golden/mlr_snet.py --test

writes such a file with transposed and shared tensors and reads it back.
"""
import collections
import io
import json
import pathlib
import pickle
import struct
import sys

MAGIC = 0x1950A86A20F9469CFC6C


class Storage:
    def __init__(self, elements):
        self.elements, self.values = elements, None


class Tensor:
    def __init__(self, storage, offset, shape, strides):
        self.storage, self.offset, self.shape, self.strides = storage, offset, tuple(shape), tuple(strides)

    def values(self):
        """Its elements in row-major order."""
        places = [self.offset]
        for size, stride in zip(self.shape, self.strides):
            places = [place + i * stride for place in places for i in range(size)]
        return [self.storage.values[place] for place in places]


class Unpickler(pickle.Unpickler):
    def __init__(self, file, storages):
        super().__init__(file)
        self.storages = storages

    def find_class(self, module, name):
        if (module, name) == ("collections", "OrderedDict"):
            return collections.OrderedDict
        if (module, name) == ("torch._utils", "_rebuild_tensor_v2"):
            return lambda storage, offset, shape, strides, *_: Tensor(storage, offset, shape, strides)
        if (module, name) == ("torch", "FloatStorage"):
            return "f32"
        raise pickle.UnpicklingError(f"{module}.{name} is not part of a dictionary of f32 tensors")

    def persistent_load(self, saved):
        kind, element, key, _, elements, view = saved
        if kind != "storage" or element != "f32" or view is not None:
            raise pickle.UnpicklingError(f"{saved} is not a whole storage of f32")
        return self.storages.setdefault(key, Storage(elements))


def read(file):
    """The tensors of a file by name."""
    storages = {}
    load = lambda: Unpickler(file, storages).load()
    if load() != MAGIC:
        raise SystemExit("this is not a file of torch.save from before version 1.6: save it again with _use_new_zipfile_serialization=False")
    _version, about, tensors, keys = load(), load(), load(), load()
    if not about["little_endian"]:
        raise SystemExit("the file is big-endian")
    for key in keys:
        (elements,) = struct.unpack("<q", file.read(8))
        if elements != storages[key].elements:
            raise SystemExit(f"storage {key} has {elements} elements, but its tensors expect {storages[key].elements}")
        storages[key].values = struct.unpack(f"<{elements}f", file.read(4 * elements))
    return tensors


def safetensors(tensors):
    header, data = {}, b""
    for name, tensor in tensors.items():
        values = tensor.values()
        more = struct.pack(f"<{len(values)}f", *values)
        header[name] = {"dtype": "F32", "shape": tensor.shape, "data_offsets": [len(data), len(data) + len(more)]}
        data += more
    header = json.dumps(header).encode()
    header += b" " * (-len(header) % 8)
    return struct.pack("<Q", len(header)) + header + data


class Pickler(pickle.Pickler):
    """Writes storages as PyTorch does. The classes of PyTorch are stood for by modules of their names."""

    def persistent_id(self, value):
        torch = sys.modules["torch"]
        return ("storage", torch.FloatStorage, value.key, "cuda:0", value.elements, None) if isinstance(value, Storage) else None

    def reducer_override(self, value):
        if isinstance(value, Tensor):
            hooks = collections.OrderedDict()
            rebuild = sys.modules["torch._utils"]._rebuild_tensor_v2
            return rebuild, (value.storage, value.offset, value.shape, value.strides, False, hooks)
        return NotImplemented


def written(tensors, storages):
    """A file of torch.save with these tensors."""
    torch, utils = type(sys)("torch"), type(sys)("torch._utils")
    torch.FloatStorage = type("FloatStorage", (), {"__module__": "torch"})

    def rebuild(*_):
        pass

    rebuild.__module__, rebuild.__qualname__, rebuild.__name__ = "torch._utils", "_rebuild_tensor_v2", "_rebuild_tensor_v2"
    utils._rebuild_tensor_v2 = rebuild
    sys.modules["torch"], sys.modules["torch._utils"] = torch, utils
    file = io.BytesIO()
    for part in (MAGIC, 1001, {"protocol_version": 1001, "little_endian": True, "type_sizes": {"short": 2, "int": 4, "long": 4}}):
        pickle.dump(part, file, protocol=2)
    Pickler(file, protocol=2).dump(tensors)
    pickle.dump([storage.key for storage in storages], file, protocol=2)
    for storage in storages:
        file.write(struct.pack(f"<q{storage.elements}f", storage.elements, *storage.values))
    return file.getvalue()


def test():
    first, second = Storage(6), Storage(2)
    (first.key, first.values), (second.key, second.values) = ("94", (1.0, 2.0, 3.0, 4.0, 5.0, 6.0)), ("17", (-0.5, 0.25))
    tensors = collections.OrderedDict(
        rows=Tensor(first, 0, (2, 3), (3, 1)), columns=Tensor(first, 0, (3, 2), (1, 3)), end=Tensor(first, 4, (2,), (1,)), b=Tensor(second, 0, (2,), (1,))
    )
    found = read(io.BytesIO(written(tensors, [second, first])))
    assert {name: (tensor.shape, tensor.values()) for name, tensor in found.items()} == {
        "rows": ((2, 3), [1, 2, 3, 4, 5, 6]),
        "columns": ((3, 2), [1, 4, 2, 5, 3, 6]),
        "end": ((2,), [5, 6]),
        "b": ((2,), [-0.5, 0.25]),
    }
    file = safetensors(found)
    (length,) = struct.unpack("<Q", file[:8])
    start, end = json.loads(file[8 : 8 + length])["columns"]["data_offsets"]
    assert struct.unpack("<6f", file[8 + length + start : 8 + length + end]) == (1, 4, 2, 5, 3, 6)
    try:
        read(io.BytesIO(pickle.dumps(MAGIC, 2) + pickle.dumps(1001, 2) + pickle.dumps(print, 2)))
    except pickle.UnpicklingError as error:
        assert "print" in str(error)
    else:
        raise AssertionError("a pickle that calls print was read")
    print("a file of PyTorch's old format is read, and one that calls something else is refused")


if __name__ == "__main__":
    if sys.argv[1:] == ["--test"]:
        test()
    elif len(sys.argv) == 3:
        with open(sys.argv[1], "rb") as file:
            pathlib.Path(sys.argv[2]).write_bytes(safetensors(read(file)))
    else:
        raise SystemExit(__doc__)
