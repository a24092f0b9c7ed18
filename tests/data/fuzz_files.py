"""Faults in a data set's HDF5 files: in their bytes, and in what they hold."""

import os
import shutil
import struct

import h5py
import numpy as np
from fuzz_intact import FRAMES, SIZE

# ---- faults in the bytes of a file ------------------------------------------------------------


def _protected(path):
    """Returns a mask of the bytes to damage: False if no reader can detect it."""
    raw = path.read_bytes()
    mask = np.ones(len(raw), bool)
    with h5py.File(path) as file:
        vil = file["vil"]
        if vil.compression or vil.fletcher32:
            return mask
        if vil.chunks:
            infos = [vil.id.get_chunk_info(i) for i in range(vil.id.get_num_chunks())]
            spans = [(info.byte_offset, info.size) for info in infos]
        else:
            spans = [(vil.id.get_offset(), vil.id.get_storage_size())]
    for first, count in spans:
        mask[first : first + count] = False
        address = raw.find(struct.pack("<Q", first))
        while address >= 0:
            mask[address : address + 8] = False
            address = raw.find(struct.pack("<Q", first), address + 1)
    return mask


def _pixel_bytes(path):
    """Returns a mask of the bytes that hold compressed pixels."""
    mask = np.zeros(path.stat().st_size, bool)
    with h5py.File(path) as file:
        vil = file["vil"]
        for i in range(vil.id.get_num_chunks() if vil.chunks else 0):
            info = vil.id.get_chunk_info(i)
            mask[info.byte_offset : info.byte_offset + info.size] = True
    return mask


def flip_bits(root, rng):
    """Flips bits anywhere, in headers and trees, near a signature of HDF5, or in pixels."""
    path = _a_file(root, rng)
    raw = bytearray(path.read_bytes())
    free, pixels = _protected(path), _pixel_bytes(path)
    where = rng.choice(["anywhere", "metadata", "metadata", "signature", "signature", "pixels"])
    places = free
    if where == "metadata":
        places = free & ~pixels
    elif where == "pixels" and (free & pixels).any():
        places = free & pixels
    elif where == "signature":
        signatures = (
            b"\x89HDF",
            b"TREE",
            b"SNOD",
            b"HEAP",
            b"OHDR",
            b"FAHD",
            b"FADB",
            b"EAHD",
            b"EAIB",
            b"BTHD",
            b"BTLF",
        )
        found = [raw.find(each) for each in signatures if raw.find(each) >= 0]
        first = rng.choice(found)
        near = np.zeros_like(free)
        near[first : first + 256] = True
        places = near & free if (near & free).any() else free
    choices = np.flatnonzero(places)
    count = rng.choice([1, 1, 1, 2, 3, 8])
    for place in rng.choices(choices, k=count):
        raw[place] ^= 1 << rng.randrange(8)
    path.write_bytes(raw)
    return f"{count} bits, {where}"


def overwrite_bytes(root, rng):
    """Overwrites a run of bytes with zeros, ones, or noise, as a failed disk or copy leaves."""
    path = _a_file(root, rng)
    raw = np.frombuffer(path.read_bytes(), np.uint8).copy()
    free = _protected(path)
    first = rng.choice(np.flatnonzero(free).tolist())
    count = rng.choice([1, 4, 8, 64, 512, 4096])
    span = np.zeros_like(free)
    span[first : first + count] = True
    filling = rng.choice([0, 255, None])
    noise = np.frombuffer(rng.randbytes(len(raw)), np.uint8)
    raw[span & free] = noise[span & free] if filling is None else filling
    path.write_bytes(raw.tobytes())
    return f"{count} bytes of {filling}"


def truncate(root, rng):
    """Truncates a file: anywhere, to nothing, or by one byte."""
    path = _a_file(root, rng)
    raw = path.read_bytes()
    kept = rng.choice([rng.randrange(len(raw)), rng.randrange(3000), 0, 1, 8, len(raw) - 1])
    path.write_bytes(raw[:kept])
    return f"{kept} of {len(raw)} bytes"


def grow(root, rng):
    """Puts bytes before or after a file's."""
    path = _a_file(root, rng)
    raw, more = path.read_bytes(), rng.randbytes(rng.choice([1, 512, 4000]))
    before = rng.random() < 0.5
    path.write_bytes(more + raw if before else raw + more)
    return f"{len(more)} bytes {'before' if before else 'after'}"


def replace_file(root, rng):
    """Replaces a file with something else."""
    path = _a_file(root, rng)
    kind = rng.choice(["absent", "folder", "text", "noise", "fifo", "loop", "other file"])
    other = next(each for each in sorted(root.rglob("*.h5")) if each != path)
    path.unlink()
    if kind == "folder":
        path.mkdir()
    elif kind == "text":
        path.write_text("<html>404 Not Found</html>\n")
    elif kind == "noise":
        path.write_bytes(rng.randbytes(5000))
    elif kind == "fifo":
        os.mkfifo(path)
    elif kind == "loop":
        path.symlink_to(path.name)
    elif kind == "other file":
        shutil.copy(other, path)
    return kind


# ---- faults in what a file holds --------------------------------------------------------------


def change_contents(root, rng):
    """Replaces `vil` or `id` with one of another shape, type or storage, or removes it."""
    path = _a_file(root, rng)
    with h5py.File(path) as file:
        vil, ids = file["vil"][...], file["id"][...]
    change = rng.choice(sorted(_CHANGES))
    with h5py.File(path, "w") as file:
        _CHANGES[change](file, vil, ids, rng)
        if "vil" not in file.keys() and not change.startswith("no vil"):
            file["vil"] = vil
        if "id" not in file.keys() and not change.startswith("no id"):
            file["id"] = ids
    return change


def _set(name, make):
    def change(file, vil, ids, rng):
        file[name] = make(vil, ids, rng)

    return change


def _create(make):
    def change(file, vil, ids, rng):
        file.create_dataset("vil", **make(vil))

    return change


def _written_in_part(file, vil, ids, rng):
    chunks = (1, *vil.shape[1:])
    fill = rng.choice([0, 7, 255])
    target = file.create_dataset(
        "vil", vil.shape, np.uint8, chunks=chunks, compression="gzip", fillvalue=fill
    )
    target[1] = vil[1]


def _virtual(file, vil, ids, rng):
    layout = h5py.VirtualLayout(vil.shape, np.uint8)
    layout[:] = h5py.VirtualSource("absent.h5", "vil", vil.shape)
    file.create_virtual_dataset("vil", layout)


_OTHER_FILTERS = ({"compression": "lzf"}, {"scaleoffset": 8}, {"fletcher32": True})


def _filtered(file, vil, ids, rng):
    file.create_dataset("vil", data=vil, chunks=(1, *vil.shape[1:]), **rng.choice(_OTHER_FILTERS))


_CHANGES = {
    "no vil": lambda file, vil, ids, rng: None,
    "no id": lambda file, vil, ids, rng: None,
    "vil a group": lambda file, vil, ids, rng: file.create_group("vil"),
    "vil a type": lambda file, vil, ids, rng: file.__setitem__("vil", np.dtype("u1")),
    "no vil: broken link": lambda file, vil, ids, rng: file.__setitem__(
        "vil", h5py.SoftLink("/nowhere")
    ),
    "no vil: link to itself": lambda file, vil, ids, rng: file.__setitem__(
        "vil", h5py.SoftLink("/vil")
    ),
    "no vil: another file": lambda file, vil, ids, rng: file.__setitem__(
        "vil", h5py.ExternalLink("absent.h5", "/vil")
    ),
    "vil empty": _set("vil", lambda vil, ids, rng: h5py.Empty("u1")),
    "vil scalar": _set("vil", lambda vil, ids, rng: np.uint8(3)),
    "vil without events": _set("vil", lambda vil, ids, rng: vil[:0]),
    "vil one event": _set("vil", lambda vil, ids, rng: vil[:1]),
    "vil without frames": _set("vil", lambda vil, ids, rng: vil[..., :0]),
    "vil time first": _set("vil", lambda vil, ids, rng: np.moveaxis(vil, -1, 1)),
    "vil narrower": _set("vil", lambda vil, ids, rng: vil[:, :, : rng.randrange(SIZE)]),
    "vil shorter": _set("vil", lambda vil, ids, rng: vil[..., : rng.randrange(FRAMES)]),
    "vil longer": _set("vil", lambda vil, ids, rng: np.concatenate([vil, vil], -1)),
    "vil of 3 axes": _set("vil", lambda vil, ids, rng: vil[0]),
    "vil of 5 axes": _set("vil", lambda vil, ids, rng: vil[..., None]),
    "vil of float": _set("vil", lambda vil, ids, rng: vil.astype(rng.choice(["f2", "<f4", ">f8"]))),
    "vil of int": _set("vil", lambda vil, ids, rng: vil.astype(rng.choice(["i1", ">u2", "<i4"]))),
    "vil of bool": _set("vil", lambda vil, ids, rng: vil > 99),
    "vil of text": _set("vil", lambda vil, ids, rng: vil.astype("S3")),
    "vil of records": _set("vil", lambda vil, ids, rng: vil.view([("a", "u1")])),
    "vil of enums": _create(
        lambda vil: {"data": vil, "dtype": h5py.enum_dtype({"a": 0}, basetype="u1")}
    ),
    "vil of opaque": _create(lambda vil: {"data": vil.view("V1")}),
    "vil never written": _create(lambda vil: {"shape": vil.shape, "dtype": "u1"}),
    "vil written in part": _written_in_part,
    "vil of huge shape": _create(
        lambda vil: {"shape": (2**40, *vil.shape[1:]), "dtype": "u1", "chunks": (1, *vil.shape[1:])}
    ),
    "vil virtual": _virtual,
    "vil external": _create(
        lambda vil: {"shape": vil.shape, "dtype": "u1", "external": [("absent.raw", 0, 9**6)]}
    ),
    "vil by other filters": _filtered,
    "id empty": _set("id", lambda vil, ids, rng: h5py.Empty("S10")),
    "id scalar": _set("id", lambda vil, ids, rng: np.bytes_(b"S0")),
    "id too short": _set("id", lambda vil, ids, rng: ids[: rng.randrange(len(ids))]),
    "id too long": _set("id", lambda vil, ids, rng: np.concatenate([ids, ids])),
    "id turned": _set("id", lambda vil, ids, rng: ids[::-1]),
    "id of 2 axes": _set("id", lambda vil, ids, rng: np.stack([ids, ids], axis=-1)),
    "id of numbers": _set("id", lambda vil, ids, rng: np.arange(len(ids))),
    "id not UTF-8": _set("id", lambda vil, ids, rng: np.array([b"\xff\xfe"] * len(ids), "S10")),
    "id of text": _set(
        "id", lambda vil, ids, rng: np.array([each.decode() for each in ids], object)
    ),
    "id of records": _set("id", lambda vil, ids, rng: ids.view([("a", "S10")])),
    "id of huge shape": lambda file, vil, ids, rng: file.create_dataset(
        "id", (2**40,), "S10", chunks=(4,)
    ),
}


def _a_file(root, rng):
    return rng.choice(sorted(root.rglob("*.h5")))
