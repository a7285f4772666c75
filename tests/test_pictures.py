"""Pictures show each image where it belongs, at a size that people can see."""

import numpy as np
import pytest
from PIL import Image

from mpcc.evaluation import pictures


def level_images(levels, size=8):
    """One flat image for each grey level."""
    return np.repeat(np.array(levels, np.uint8), size * size).reshape(-1, 1, size, size)


def opened(path):
    with Image.open(path) as image:
        return image.copy()


def column_levels(path, y):
    """Grey levels from left to right along one row of screen pixels, repeats and paper left out."""
    row = np.asarray(opened(path).convert("L"))[y]
    changes = row[np.r_[True, row[1:] != row[:-1]]]
    return [int(v) for v in changes if v != 255]


def test_sample_sheet_puts_two_columns_under_each_cluster(tmp_path):
    levels = [10, 20, 30, 40, 50, 60, 70, 80]
    clusters = [1, 0, 1, 0, 1, 0, 1, 0]
    pictures.sample_sheet(level_images(levels), clusters, 2, tmp_path / "s.png")
    first = pictures.GAP // 2 + pictures.HEADING + 5
    assert column_levels(tmp_path / "s.png", first) == [20, 40, 10, 30]
    assert column_levels(tmp_path / "s.png", first + pictures.MIN_TILE) == [60, 80, 50, 70]


def test_reconstructions_are_pairs_sorted_by_label(tmp_path):
    images, reconstructions = level_images([10, 20, 30]), level_images([110, 120, 130])
    path = tmp_path / "r.png"
    pictures.reconstruction_sheet(images, reconstructions, path, labels=[2, 0, 1])
    y = pictures.GAP // 2 + pictures.HEADING + 5
    assert column_levels(path, y) == [20, 120, 30, 130, 10, 110]


def test_reconstructions_without_labels_are_drawn(tmp_path):
    images = level_images(range(0, 240, 10))
    pictures.reconstruction_sheet(images, images + 5, tmp_path / "r.png", rows=4)
    assert opened(tmp_path / "r.png").size[0] > 6 * 2 * pictures.MIN_TILE


@pytest.mark.parametrize(("n_clusters", "size"), [(10, 8), (20, 32), (100, 32), (3, 64)])
def test_sheets_are_legible_and_not_wider_than_a_page(tmp_path, n_clusters, size):
    images = level_images(np.arange(n_clusters * 8) % 200, size)
    clusters = np.arange(n_clusters * 8) // 8
    pictures.sample_sheet(images, clusters, n_clusters, tmp_path / "s.png")
    width, height = opened(tmp_path / "s.png").size
    assert width <= 900
    assert width * height >= len(images) * max(size, pictures.MIN_TILE) ** 2


def test_empty_cluster_stays_blank_and_keeps_its_place(tmp_path):
    pictures.sample_sheet(level_images([10, 20]), [0, 2], 3, tmp_path / "s.png")
    full = opened(tmp_path / "s.png").size
    pictures.sample_sheet(level_images([10, 20, 30]), [0, 2, 1], 3, tmp_path / "t.png")
    assert opened(tmp_path / "t.png").size == full


def test_colour_images_keep_their_colours(tmp_path):
    red = np.zeros((1, 3, 32, 32), np.uint8)
    red[:, 0] = 200
    pictures.sample_sheet(red, [0], 1, tmp_path / "c.png")
    assert (200, 0, 0) in {c for _, c in opened(tmp_path / "c.png").getcolors(100_000)}


def test_images_of_another_kind_are_refused(tmp_path):
    with pytest.raises(ValueError, match="uint8"):
        pictures.sample_sheet(np.zeros((1, 1, 8, 8), np.float32), [0], 1, tmp_path / "x.png")
    assert list(tmp_path.iterdir()) == []


def test_chosen_images_are_as_many_of_each_label():
    labels = np.array([0] * 50 + [1] * 3 + [2] * 20)
    chosen = pictures.choose_by_label(labels, 5)
    assert np.bincount(labels[chosen]).tolist() == [5, 3, 5]
    assert (pictures.choose_by_label(labels, 5) == chosen).all()
    assert (pictures.choose_by_label(labels, 5, seed=1) != chosen).any()
