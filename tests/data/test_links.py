"""Files whose pixels are behind links or filters are read as by h5py, or refused by name."""

import dataclasses

import h5py
import numpy as np
import pytest

from keras_nowcast.data import catalog, hdf5, sevir
from keras_nowcast.errors import InputError


def _refused(event, match):
    for look in (lambda: sevir.check_files([event]), lambda: sevir.read_event(event)):
        with pytest.raises(InputError, match=match) as caught:
            look()
        assert "\n" not in str(caught.value)


# ---- links ------------------------------------------------------------------------------------


def _behind_a_link(event, target="real.h5", decoy=True, ids_too=True):
    """Moves the file to real.h5; a file of its previous name links to `target`."""
    real = event.file.rename(event.file.with_name("real.h5"))
    with h5py.File(event.file, "w") as file:
        file["vil"] = h5py.ExternalLink(target, "/vil")
        if ids_too:
            file["id"] = h5py.ExternalLink(target, "/id")
        else:
            file["id"] = np.array([b"S0", b"S1", b"S2"])
        if decoy:
            file["lght"] = np.arange(3 * 16 * 16 * 49 + 4096, dtype=np.uint32).view(np.uint8)
    return real


@pytest.mark.parametrize(
    "storage",
    [{}, {"chunks": (1, 16, 16, 49), "compression": "gzip"}, {"chunks": True, "fletcher32": True}],
)
@pytest.mark.parametrize("decoy", [True, False])
def test_pixels_behind_an_external_link_are_those_of_h5py(tmp_path, write_sevir, storage, decoy):
    codes = write_sevir(tmp_path, events=3, **storage)
    events = catalog.read_catalog(tmp_path)
    _behind_a_link(events[0], decoy=decoy)
    sevir.check_files(events)
    for event, expected in zip(events, codes, strict=True):
        with h5py.File(event.file, locking=False) as file:
            np.testing.assert_array_equal(file["vil"][event.index], expected)
        np.testing.assert_array_equal(sevir.read_event(event), expected)


def test_a_linked_file_that_is_replaced_is_read_again(tmp_path, write_sevir):
    codes = write_sevir(tmp_path, events=3)
    events = catalog.read_catalog(tmp_path)
    real = _behind_a_link(events[0])
    np.testing.assert_array_equal(sevir.read_event(events[1]), codes[1])
    with h5py.File(real, "w") as file:
        file["more"] = np.zeros(999, np.uint8)  # so that the pixels are at another place
        file["vil"], file["id"] = codes[::-1] ^ 1, np.array([b"S0", b"S1", b"S2"])
    np.testing.assert_array_equal(sevir.read_event(events[0]), codes[2] ^ 1)


def test_links_within_a_file(tmp_path, write_sevir):
    codes = write_sevir(tmp_path, events=3)
    events = catalog.read_catalog(tmp_path)
    with h5py.File(events[0].file, "r+") as file:
        file.move("vil", "real")
        file["group/vil"] = h5py.SoftLink("/real")
        file["vil"] = h5py.SoftLink("/group/vil")
    np.testing.assert_array_equal(sevir.read_event(events[1]), codes[1])


def test_a_link_that_leads_nowhere_is_named(event):
    _behind_a_link(event, target="gone.h5", ids_too=False)
    _refused(event, r"`vil` in .*an external link to /vil in gone\.h5, which leads nowhere")
    (event.file.parent / "gone.h5").write_text("no HDF5")
    _refused(event, r"`vil` in .*an external link to /vil in gone\.h5, which leads nowhere")
    for target in ("/nothing", "/vil"):
        with h5py.File(event.file, "r+") as file:
            del file["vil"]
            file["vil"] = h5py.SoftLink(target)
        _refused(event, rf"`vil` in .*a soft link to {target}, which leads nowhere")


def test_the_first_reading_is_compared_with_h5py(event, monkeypatch):
    """If the places of the bytes are wrong for whatever reason, no pixel is used."""
    read_layout = hdf5.read_layout

    def shifted(dataset):
        layout = read_layout(dataset)
        places = sorted(layout.chunks.values())
        moved = dict(zip(layout.chunks, places[1:] + places[:1], strict=True))
        return dataclasses.replace(layout, chunks=moved)

    monkeypatch.setattr(hdf5, "read_layout", shifted)
    _refused(event, "HDF5 reads other elements than those found without it")


# ---- filters ----------------------------------------------------------------------------------


def _with_filter(event, code, name, mask=0):
    """Writes `vil` with chunks that stand for what the plugin of a filter would have written."""
    settings = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
    settings.set_filter(code, h5py.h5z.FLAG_OPTIONAL, (3,))
    codes = np.random.default_rng(0).integers(0, 255, (3, 16, 16, 49), np.uint8)
    with h5py.File(event.file, "r+") as file:
        del file[name]
        shape = codes.shape if name == "vil" else (3,)
        settings.set_chunk((1, *shape[1:]))
        stored = h5py.h5t.STD_U8LE if name == "vil" else h5py.h5t.py_create("S10")
        space = h5py.h5s.create_simple(shape)
        made = h5py.h5d.create(file.id, name.encode(), stored, space, settings)
        for k in range(3):
            raw = codes[k].tobytes() if name == "vil" else b"S%d\0\0\0\0\0\0\0\0" % k
            made.write_direct_chunk((k, *(0 for _ in shape[1:])), raw, filter_mask=mask)
    return codes


@pytest.mark.parametrize(
    ("code", "text"),
    [(32015, r"filter 32015 \(Zstandard\)"), (32001, r"filter 32001 \(Blosc\)"), (300, "300")],
)
@pytest.mark.parametrize("name", ["vil", "id"])
def test_a_filter_that_is_not_installed_is_named(event, code, text, name):
    _with_filter(event, code, name)
    _refused(event, rf"`{name}` in .*{text}.*HDF5_PLUGIN_PATH")


def test_a_filter_that_all_chunks_skip_need_not_be_installed(event):
    codes = _with_filter(event, 32015, "vil", mask=1)
    np.testing.assert_array_equal(sevir.read_event(event), codes[1])
