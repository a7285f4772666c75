"""Every data set from small files in its official format, and from the real ones where given."""

import gzip
import hashlib
import io
import os
import pickle
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from mpcc.__main__ import main
from mpcc.config import PRESETS, from_dict
from mpcc.data import files as data_files
from mpcc.data import image_set as data
from mpcc.data import readers as data_readers
from mpcc.data.download import download
from mpcc.data.image_set import DataError

REAL = os.environ.get("MPCC_DATA_DIR")
needs_real_data = pytest.mark.skipif(
    not REAL, reason="set MPCC_DATA_DIR to a folder with the real files"
)


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("MPCC_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.delenv("MPCC_DATA_DIR", raising=False)


@pytest.fixture
def root(tmp_path):
    folder = tmp_path / "data"
    folder.mkdir()
    return folder


def config(dataset, **changes):
    return from_dict({"dataset": dataset} | changes)


def check_available(config, data_dir=None):
    data_files.check_available(config.dataset, data_dir)


def write(path, content):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return path


def make_official(monkeypatch, dataset, folder):
    """Let the files written by a test count as the official ones, sums and all."""
    sums = {
        name: hashlib.md5((folder / name).read_bytes()).hexdigest()
        for name in data_files.FILES[dataset].checksums
    }
    monkeypatch.setitem(
        data_files.FILES,
        dataset,
        data_files.FileSet(data_files.FILES[dataset].folder, sums, "https://example.org/"),
    )


def idx(array):
    head = bytes([0, 0, 8, array.ndim]) + np.array(array.shape, ">u4").tobytes()
    return head + array.astype(np.uint8).tobytes()


def write_idx_set(root, dataset, n_train=12, n_test=6):
    folder = root / data_files.FILES[dataset].folder
    rng = np.random.default_rng(0)
    for part, n in (("train", n_train), ("t10k", n_test)):
        images, labels = rng.integers(256, size=(n, 28, 28)), np.arange(n) % 10
        write(folder / f"{part}-images-idx3-ubyte.gz", gzip.compress(idx(images), mtime=0))
        write(folder / f"{part}-labels-idx1-ubyte.gz", gzip.compress(idx(labels), mtime=0))
    return folder


def write_cifar(root, dataset, n=4):
    folder = root / data_files.FILES[dataset].folder
    for i, name in enumerate(data_files.FILES[dataset].checksums):
        labels = (np.arange(n) + i).tolist()
        batch = {"data": np.full((n, 3072), 10 * i, np.uint8), "filenames": ["x"] * n}
        batch["data"][:, :1024] = 250  # the first plane is red
        if dataset == "cifar10":
            batch["labels"] = labels
        else:
            batch |= {"fine_labels": [99] * n, "coarse_labels": labels}
        write(folder / name, pickle.dumps(batch, protocol=2))
    return folder


def png(array):
    buffer = io.BytesIO()
    Image.fromarray(array).save(buffer, format="PNG")
    return buffer.getvalue()


def write_omniglot(root, n_characters=100, n_drawings=1):
    drawing = np.full((105, 105), 255, np.uint8)
    drawing[40:60, 45:60] = 0
    for k in range(n_characters):
        for i in range(n_drawings):
            name = f"images_background/Abc{k // 50}/character{k % 50:02}/{k}_{i:02}.png"
            write(root / "Omniglot" / name, png(drawing))


# -- what every data set promises ----------------------------------------------------------------


def test_digits_are_scikit_learns_in_0_to_255():
    from sklearn.datasets import load_digits

    digits = data.load(PRESETS["digits"])
    assert digits.images.shape == (1797, 1, 8, 8) and digits.images.dtype == torch.uint8
    expected = np.rint(load_digits().images * 255 / 16 + 1e-9)
    assert (digits.images[:, 0].numpy() == expected).all()
    assert digits.labels.tolist() == load_digits().target.tolist()
    assert digits.label_names == tuple("0123456789")


def test_train_split_of_the_digits_leaves_every_fifth_out():
    everything = data.load(PRESETS["digits"])
    train = data.load(PRESETS["digits"].override(split="train"))
    assert len(train) == 1438 and train.fingerprint != everything.fingerprint
    assert (train.images[4] == everything.images[5]).all()


def test_float_images_span_minus_one_to_one_and_come_back():
    levels = torch.arange(256, dtype=torch.uint8)
    floats = data.to_float(levels)
    assert floats.dtype == torch.float32 and floats[0] == -1 and floats[-1] == 1
    assert (data.to_uint8(floats) == levels).all()
    assert data.to_uint8(torch.tensor([-3.0, 7.0])).tolist() == [0, 255]


@pytest.mark.parametrize("size", [8, 16, 32, 64])
def test_resizing_agrees_with_torchs_antialiased_bilinear(size):
    images = np.random.default_rng(0).integers(256, size=(5, 3, 28, 28)).astype(np.uint8)
    expected = torch.nn.functional.interpolate(
        torch.from_numpy(images).double(), size=(size, size), mode="bilinear", antialias=True
    )
    assert np.abs(data_readers.resize(images, size) - expected.numpy()).max() < 0.52


def test_resizing_keeps_flat_images_and_does_not_depend_on_the_batch():
    flat = np.full((1, 1, 28, 28), 255, np.uint8)
    assert (data_readers.resize(flat, 32) == 255).all()
    images = np.random.default_rng(0).integers(256, size=(7, 1, 28, 28)).astype(np.uint8)
    whole = data_readers.resize(images, 16)
    assert (data_readers.resize(images, 16, chunk=2) == whole).all()


def test_fingerprint_changes_with_a_pixel_a_label_and_the_shape():
    images, labels = torch.zeros(4, 1, 2, 2, dtype=torch.uint8), torch.arange(4)
    other = images.clone()
    other[0, 0, 0, 0] = 1
    prints = {
        data.fingerprint(images, labels),
        data.fingerprint(images, None),
        data.fingerprint(other, labels),
        data.fingerprint(images, labels.flip(0)),
        data.fingerprint(images.view(1, 1, 4, 4), labels),
    }
    assert len(prints) == 5


# -- formats -------------------------------------------------------------------------------------


@pytest.mark.parametrize("dataset", ["mnist", "fmnist"])
def test_idx_files_are_read_packed_and_unpacked_alike(root, monkeypatch, dataset):
    folder = write_idx_set(root, dataset)
    make_official(monkeypatch, dataset, folder)
    packed = data.load(config(dataset), root)
    assert packed.images.shape == (18, 1, 32, 32) and packed.notes == ()
    assert len(data.load(config(dataset, split="train"), root)) == 12
    assert packed.labels.tolist() == [*range(10), 0, 1, *range(6)]
    monkeypatch.setattr(data_files, "UNPACKED_MNIST", {})
    for path in sorted(folder.glob("*.gz")):
        write(path.with_suffix(""), gzip.decompress(path.read_bytes()))
        path.unlink()
    assert data.load(config(dataset), root).fingerprint == packed.fingerprint


@pytest.mark.parametrize(("dataset", "n_files"), [("cifar10", 6), ("cifar20", 2)])
def test_cifar_batches_are_read_in_colour_with_the_right_labels(
    root, monkeypatch, dataset, n_files
):
    make_official(monkeypatch, dataset, write_cifar(root, dataset))
    loaded = data.load(config(dataset), root)
    assert loaded.images.shape == (4 * n_files, 3, 32, 32)
    assert loaded.images[5, :, 0, 0].tolist() == [250, 10, 10]
    assert loaded.labels[:8].tolist() == [0, 1, 2, 3, 1, 2, 3, 4]
    assert len(loaded.label_names) == (10 if dataset == "cifar10" else 20)
    assert len(data.load(config(dataset, split="train"), root)) == 4 * (n_files - 1)


def test_omniglot_has_twenty_distorted_copies_of_each_drawing_a_fifth_held_out(root, monkeypatch):
    monkeypatch.setattr(data_files, "OMNIGLOT_CHARACTERS", 10)
    write_omniglot(root, 10, 5)
    every = data.load(config("omniglot", image_size=8), root)
    assert every.images.shape == (10 * 5 * 20, 1, 8, 8)
    assert torch.bincount(every.labels).tolist() == [100] * 10
    copies = every.images[:20].flatten(1)
    assert len(copies.unique(dim=0)) > 15 and copies.max() > 100
    assert every.images[:, :, 0, 0].max() == 0  # ink is bright, paper black
    assert every.label_names[7] == "Abc0/character07"
    settings = config("omniglot", image_size=8, split="train", eval_split="test")
    trained = data.load(settings, root)
    held_out = data.held_out(settings, trained, root)
    fifth = np.arange(len(every)) // 20 % 5 == 4
    assert trained.images.equal(every.images[~fifth])
    assert held_out.images.equal(every.images[fifth]) and held_out.labels.equal(every.labels[fifth])
    drawings = root / "Omniglot" / "images_background"
    with zipfile.ZipFile(root / "Omniglot" / "some.zip", "w") as archive:
        for path in sorted(drawings.glob("*/*/*.png")):
            archive.write(path, path.relative_to(root / "Omniglot"))
    drawings.rename(root / "elsewhere")
    from_archive = data.load(config("omniglot", image_size=8), root)
    assert from_archive.fingerprint == every.fingerprint
    assert "some.zip" in from_archive.notes[0]


def test_folder_takes_labels_from_subfolders_and_cuts_squares(root):
    wide = np.zeros((10, 30, 3), np.uint8)
    wide[:, 10:20] = [200, 0, 0]
    write(root / "cats" / "a.png", png(wide))
    write(root / "dogs" / "deep" / "b.png", png(wide[:, :10]))
    loaded = data.load(config("folder", image_size=8, n_clusters=2), root)
    assert loaded.label_names == ("cats", "dogs") and loaded.labels.tolist() == [0, 1]
    assert loaded.images[0, :, 4, 4].tolist() == [200, 0, 0]
    assert loaded.images[1].max() == 0


def test_folder_without_subfolders_has_no_labels(root):
    for i in range(5):
        write(root / f"{i}.png", png(np.full((9, 9), i * 20, np.uint8)))
    loaded = data.load(config("folder", image_size=8), root)
    assert loaded.labels is None and loaded.label_names == ()
    assert loaded.images[:, 2, 0, 0].tolist() == [0, 20, 40, 60, 80]
    assert len(data.load(config("folder", image_size=8, split="train"), root)) == 4


# -- prepared once, shared by all ----------------------------------------------------------------


def test_second_load_reads_the_prepared_arrays_and_gives_the_same(root, monkeypatch):
    make_official(monkeypatch, "mnist", write_idx_set(root, "mnist"))
    first = data.load(config("mnist"), root)
    monkeypatch.setattr(data_readers, "read", None)  # would fail if it were called
    second = data.load(config("mnist"), root)
    assert (second.images == first.images).all() and (second.labels == first.labels).all()
    assert (second.fingerprint, second.label_names) == (first.fingerprint, first.label_names)
    assert data.fingerprint(second.images, second.labels) == first.fingerprint


def test_writing_to_loaded_images_changes_nobody_elses():
    first = data.load(PRESETS["digits"])
    before = first.images[0].clone()
    first.images[0] = 77
    assert (data.load(PRESETS["digits"]).images[0] == before).all()


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="needs Linux's /proc")
def test_images_are_mapped_from_the_cache_so_that_processes_share_them(tmp_path):
    images = data.load(PRESETS["digits"]).images
    maps = Path("/proc/self/maps").read_text().splitlines()
    (line,) = (m for m in maps if str(tmp_path) in m and m.endswith("images.bin"))
    first, last = (int(end, 16) for end in line.split()[0].split("-"))
    assert first <= images.data_ptr() < last


def test_changed_file_is_read_again(root, monkeypatch):
    folder = write_idx_set(root, "mnist")
    make_official(monkeypatch, "mnist", folder)
    data.load(config("mnist"), root)
    write(folder / "train-labels-idx1-ubyte.gz", b"broken")
    with pytest.raises(DataError, match="train-labels"):
        data.load(config("mnist"), root)


def test_damaged_cache_is_made_anew(tmp_path):
    first = data.load(PRESETS["digits"])
    (place,) = (tmp_path / "cache" / "prepared").glob("digits-*/images.bin")
    place.write_bytes(b"short")
    (scraps := place.parent.with_name(".mnist.4194305.tmp")).mkdir()  # Of a process that is dead.
    (scraps / "images.bin").touch()
    assert data.load(PRESETS["digits"]).fingerprint == first.fingerprint
    assert place.stat().st_size == first.images.numel()
    assert os.listdir(place.parent.parent) == [place.parent.name]


def test_cache_that_cannot_be_written_is_done_without(tmp_path, monkeypatch):
    expected = data.load(PRESETS["digits"]).fingerprint
    write(tmp_path / "file", b"")
    monkeypatch.setenv("MPCC_CACHE_DIR", str(tmp_path / "file" / "below"))
    assert data.load(PRESETS["digits"]).fingerprint == expected


# -- one clear line for what is wrong ------------------------------------------------------------


def one_line(error):
    text = str(error.value)
    assert "\n" not in text
    return text


@pytest.mark.parametrize("dataset", ["mnist", "fmnist", "cifar10", "cifar20", "omniglot"])
def test_missing_files_are_named_with_the_place_to_put_them(root, dataset):
    for ask in (check_available, data.load):
        with pytest.raises(DataError) as error:
            ask(config(dataset), root)
        text = one_line(error)
        assert str(root) in text and "--download" in text
        for name in data_files.FILES[dataset].checksums if dataset in data_files.FILES else ():
            assert name in text


@pytest.mark.parametrize("data_dir", [None, Path("/nowhere/at/all")])
def test_missing_folder_is_named(data_dir):
    for dataset in ("mnist", "folder", "omniglot"):
        with pytest.raises(DataError, match="nowhere|--data-dir"):
            check_available(config(dataset), data_dir)


def test_data_folder_is_found_by_the_environment(root, monkeypatch):
    make_official(monkeypatch, "mnist", write_idx_set(root, "mnist"))
    monkeypatch.setenv("MPCC_DATA_DIR", str(root))
    check_available(config("mnist"))
    assert len(data.load(config("mnist"))) == 18


def test_file_with_another_checksum_is_refused_unless_it_says_so(root):
    folder = write_cifar(root, "cifar10")
    for ask in (check_available, data.load):
        with pytest.raises(DataError, match="data_batch_1.*not the official file.*MODIFIED.txt"):
            ask(config("cifar10"), root)
    write(folder / "MODIFIED.txt", b"recompressed as JPEG\n")
    check_available(config("cifar10"), root)
    assert "recompressed as JPEG" in data.load(config("cifar10"), root).notes[0]


def packed(content):
    """Without the time: it would stand in a test's name."""
    return gzip.compress(content, mtime=0)


def say_modified(folder):
    write(folder / "MODIFIED.txt", b"written by a test")


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("train-images-idx3-ubyte.gz", packed(idx(np.zeros((12, 28, 28))))[:-20], "damaged"),
        ("train-images-idx3-ubyte.gz", b"<html>not found</html>", "damaged"),
        ("train-images-idx3-ubyte.gz", packed(b"PK\3\4 no"), "not an idx file"),
        ("t10k-images-idx3-ubyte.gz", packed(idx(np.zeros((6, 28, 28)))[:-9]), "truncated"),
        ("train-images-idx3-ubyte.gz", packed(idx(np.zeros(12))), "no images"),
        ("t10k-labels-idx1-ubyte.gz", packed(idx(np.zeros(7))), "7 labels for 6 images"),
        ("t10k-labels-idx1-ubyte.gz", packed(idx(np.full(6, 10))), "labels beyond 0..9"),
        ("t10k-images-idx3-ubyte.gz", packed(idx(np.zeros((6, 8, 8)))), "another size"),
        (
            "t10k-images-idx3-ubyte.gz",
            packed(b"\0\0\x08\x03" + b"\x80\0\0\0" * 3),
            "truncated",
        ),
    ],
)
def test_damaged_idx_file_is_named(root, name, content, says):
    folder = write_idx_set(root, "mnist")
    say_modified(folder)
    write(folder / name, content)
    with pytest.raises(DataError) as error:
        data.load(config("mnist"), root)
    assert name in one_line(error) and says in one_line(error)


@pytest.mark.parametrize("kind", ["a folder", "a loop", "a link to nothing"])
def test_a_data_file_that_cannot_be_opened_is_named(root, kind):
    folder = write_idx_set(root, "mnist")
    say_modified(folder)
    file = folder / "train-images-idx3-ubyte.gz"
    file.unlink()
    if kind == "a folder":
        file.mkdir()
    else:
        file.symlink_to(file.name if kind == "a loop" else "nowhere")
    with pytest.raises(DataError) as error:
        data.load(config("mnist"), root)
    assert file.name in one_line(error)


class Evil:
    def __reduce__(self):
        return os.system, ("echo this must never run",)


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"", "not a batch"),
        (pickle.dumps([1, 2]), "not a batch"),
        (pickle.dumps({"data": Evil()}), "not a batch"),
        (
            pickle.dumps({"data": np.zeros((2, 3072), np.uint8), "fine_labels": [0, 1]}),
            "no data with",
        ),
        (pickle.dumps({"data": np.zeros((2, 99), np.uint8), "labels": [0, 1]}), "no 32 x 32"),
        (pickle.dumps({"data": np.zeros((2, 3072), np.uint8), "labels": [0]}), "1 labels for 2"),
        (pickle.dumps({"data": np.zeros((1, 3072), np.uint8), "labels": [10]}), "labels beyond"),
        (
            pickle.dumps({"data": np.zeros((2, 3072), np.uint8), "labels": [0, 1]})[:500],
            "not a batch",
        ),
        (b"\x80\x04" + b"(" * 100_000 + b".", "not a batch"),
        *(
            (pickle.dumps({"data": np.zeros((2, 3072), np.uint8), "labels": labels}), says)
            for labels, says in (
                ([0, -1], "labels beyond"),
                ([0.0, 1.0], "labels beyond"),
                (["a", "b"], "labels beyond"),
                ([10**30, 0], "labels beyond"),
                (None, "1 labels for 2"),
                ([0, [1, 2]], "no row of labels"),
            )
        ),
    ],
)
def test_damaged_or_hostile_cifar_batch_is_named(root, content, says, capfd):
    folder = write_cifar(root, "cifar10")
    say_modified(folder)
    write(folder / "data_batch_3", content)
    with pytest.raises(DataError) as error:
        data.load(config("cifar10"), root)
    assert "data_batch_3" in one_line(error) and says in one_line(error)
    assert capfd.readouterr().out == ""


def test_damaged_omniglot_is_named(root):
    write(root / "Omniglot" / "images_background.zip", b"PK broken")
    with pytest.raises(DataError, match="images_background.zip is not a sound zip"):
        check_available(config("omniglot"), root)
    (root / "Omniglot" / "images_background.zip").unlink()
    write_omniglot(root, n_characters=99)
    with pytest.raises(DataError, match="99 characters, 100 are needed"):
        check_available(config("omniglot"), root)
    write_omniglot(root)
    write(root / "Omniglot/images_background/Abc0/character07/7_00.png", b"\x89PNG broken")
    with pytest.raises(DataError, match="7_00.png is damaged"):
        data.load(config("omniglot"), root)


@pytest.mark.parametrize("said", ["no route to host", ""])
def test_failed_download_is_one_line(said, root, monkeypatch):
    import torchvision.datasets.utils as downloads

    def no_network(*args, **kwargs):
        raise OSError(said)

    monkeypatch.setattr(downloads, "download_url", no_network)
    monkeypatch.setattr(downloads, "download_and_extract_archive", no_network)
    for dataset in ("mnist", "cifar20", "omniglot"):
        with pytest.raises(DataError, match=rf"into .* failed \({said or 'OSError'}") as error:
            download(dataset, root)
        one_line(error)


def test_download_puts_files_where_they_are_found(tmp_path, root, monkeypatch):
    import torchvision.datasets.utils as downloads

    source = write_idx_set(root, "fmnist")
    make_official(monkeypatch, "fmnist", source)

    def copy(url, folder, md5):
        name = url.rpartition("/")[2]
        write(Path(folder) / name, (source / name).read_bytes())

    monkeypatch.setattr(downloads, "download_url", copy)
    download("fmnist", None)
    assert len(data.load(config("fmnist"), None)) == 18  # found again without being told


# -- the real files ------------------------------------------------------------------------------


@pytest.mark.data
@needs_real_data
def test_real_mnist_is_whole_and_official():
    loaded = data.load(config("mnist", image_size=16), Path(REAL))
    assert loaded.images.shape == (70_000, 1, 16, 16) and loaded.notes == ()
    assert torch.bincount(loaded.labels).tolist() == [
        6903, 7877, 6990, 7141, 6824, 6313, 6876, 7293, 6825, 6958,
    ]  # fmt: skip
    assert loaded.labels[:5].tolist() == [5, 0, 4, 1, 9]
    assert main(["--preset", "mnist", "--data-dir", REAL, "--dry-run"]) == 0


@pytest.mark.data
@needs_real_data
def test_real_omniglot_is_forty_thousand_images(monkeypatch):
    monkeypatch.setattr(data_readers, "N_COPIES", 1)  # Of twenty: they take half a minute.
    loaded = data.load(config("omniglot", image_size=8), Path(REAL))
    assert loaded.images.shape == (2_000, 1, 8, 8) and len(loaded.label_names) == 100


# -- where the cache lies ------------------------------------------------------------------------


@pytest.fixture
def no_home(monkeypatch, tmp_path):
    for name in ("MPCC_CACHE_DIR", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "tmp"))
    (tmp_path / "tmp").mkdir()
    monkeypatch.setenv("HOME", "/proc/nowhere")  # Nobody can make a folder there.
    return tmp_path / "tmp" / f"mpcc-{os.getuid()}"


def test_without_a_home_the_cache_is_a_folder_of_this_user_alone(no_home, monkeypatch):
    assert data_files.cache_dir() == no_home and no_home.stat().st_mode & 0o777 == 0o700
    monkeypatch.delenv("HOME")
    monkeypatch.setattr(Path, "home", _no_home)
    assert data_files.cache_dir() == no_home
    first = data.load(PRESETS["digits"])
    assert (no_home / "prepared").is_dir()
    assert data.load(PRESETS["digits"]).fingerprint == first.fingerprint


def _no_home():
    raise RuntimeError("Could not determine home directory.")


@pytest.mark.parametrize("taken", ["link", "other", "open", "file"])
def test_a_folder_that_another_user_has_taken_is_not_used(no_home, monkeypatch, tmp_path, taken):
    if taken == "link":
        (tmp_path / "theirs").mkdir()
        no_home.symlink_to(tmp_path / "theirs")
    elif taken == "file":
        no_home.write_bytes(b"")
    else:
        no_home.mkdir(mode=0o700)
    if taken == "open":
        no_home.chmod(0o777)
    if taken == "other":
        ours = no_home
        monkeypatch.setattr(os, "getuid", lambda: 12345)
        ours.rename(ours.with_name("mpcc-12345"))
    before = sorted(no_home.parent.rglob("*"))
    assert len(data.load(PRESETS["digits"])) == 1797
    assert sorted(no_home.parent.rglob("*")) == before
    assert taken != "link" or not list((tmp_path / "theirs").iterdir())


def test_another_users_entries_in_a_shared_cache_are_made_anew_or_done_without(
    tmp_path, monkeypatch
):
    expected = data.load(PRESETS["digits"]).fingerprint
    real = Path.open

    def forbidden(self, *args, **kwargs):
        if "prepared" in self.parts:
            raise PermissionError(13, "Permission denied", str(self))
        return real(self, *args, **kwargs)

    monkeypatch.setattr(Path, "open", forbidden)
    assert data.load(PRESETS["digits"]).fingerprint == expected
