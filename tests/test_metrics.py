"""Metrics against scikit-learn, points counted by hand, and what must not change them."""

import numpy as np
import pytest
from sklearn.metrics import adjusted_rand_score, normalized_mutual_info_score, silhouette_score

from analysis.tables.columns import column
from mpcc.evaluation import failures, metrics
from mpcc.evaluation.baseline import best_of_ten_starts
from tune.suggest.search import check_objectives

LABELS = [0, 0, 0, 1, 1, 2]
CLUSTERS = [0, 0, 1, 1, 2, 1]


def random_assignment(seed, n=500, n_labels=7, n_clusters=9):
    rng = np.random.default_rng(seed)
    labels = rng.integers(n_labels, size=n)
    clusters = np.where(rng.random(n) < 0.6, labels, rng.integers(n_clusters, size=n))
    return labels, clusters, n_clusters


def test_six_points_counted_by_hand():
    # cluster 0: labels 0 0; cluster 1: labels 0 1 2; cluster 2: label 1
    scores = metrics.clustering(LABELS, CLUSTERS, 4)
    assert scores["acc_majority"] == pytest.approx(4 / 6)  # 2 + 1 + 1
    assert scores["acc_hungarian"] == pytest.approx(4 / 6)  # 0-0 twice, 1-2 once, 2-1 once
    assert metrics.n_clusters_used(CLUSTERS) == 3


@pytest.mark.parametrize(
    ("labels", "clusters", "k"),
    [
        *(random_assignment(seed) for seed in range(5)),
        ([0, 0, 0], [1, 1, 1], 3),
        ([0, 1, 2], [0, 0, 0], 3),
        ([0, 1, 2], [2, 0, 1], 3),
    ],
)
def test_scores_equal_scikit_learns_and_majority_is_never_below_hungarian(labels, clusters, k):
    scores = metrics.clustering(labels, clusters, k)
    oracle = {
        "nmi": normalized_mutual_info_score(labels, clusters),
        "ari": adjusted_rand_score(labels, clusters),
    }
    assert {name: scores[name] for name in oracle} == pytest.approx(oracle, abs=1e-12)
    assert scores["acc_majority"] >= scores["acc_hungarian"]


def test_renaming_clusters_changes_no_score():
    labels, clusters, k = random_assignment(1)
    renamed = np.random.default_rng(0).permutation(k)[clusters]
    assert metrics.clustering(labels, renamed, k) == pytest.approx(
        metrics.clustering(labels, clusters, k)
    )


def test_perfect_clustering_scores_one():
    labels = np.arange(30) % 3
    scores = metrics.clustering(labels, (labels + 1) % 3, 3)
    assert {scores[n] for n in ("acc_majority", "acc_hungarian", "nmi", "ari")} == {1.0}


def test_labels_and_clusters_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match="one length"):
        metrics.clustering([0, 1], [0, 1, 1], 2)
    with pytest.raises(ValueError, match="clusters must lie in"):
        metrics.clustering([0, 1], [0, 2], 2)


def test_kmeans_on_separated_points_finds_them():
    labels = np.arange(40) % 4
    images = np.zeros((40, 1, 2, 2), np.uint8)
    images.reshape(40, 4)[np.arange(40), labels] = 255
    assert best_of_ten_starts(images, labels, 4, seed=0) == 1.0


def moments(differences):
    """Each image's mean and mean square of differences (N, ...)."""
    flat = differences.reshape(len(differences), -1)
    return np.stack((flat.mean(1), np.square(flat).mean(1)), 1)


def test_published_mse_is_the_square_of_the_mean_and_the_true_one_is_not():
    differences = np.array([[-1, 1], [-1, -1], [0, 0], [-1, 0]], float)
    found = metrics.reconstruction(moments(differences), batch_size=4)
    assert found == pytest.approx({"mse": 5 / 8, "mse_published": (3 / 8) ** 2})
    assert metrics.reconstruction(moments(differences), batch_size=5) == {"mse": 5 / 8}


def test_published_mse_is_over_full_batches_of_one_order_and_not_by_label():
    rng = np.random.default_rng(0)
    differences = rng.normal(size=(1007, 3, 4, 4)) + np.linspace(-1, 1, 1007)[:, None, None, None]
    order = np.random.default_rng(0).permutation(1007)[:1000]
    expected = np.mean([np.mean(differences[order[i : i + 50]]) ** 2 for i in range(0, 1000, 50)])
    found = metrics.reconstruction(moments(differences), 50)
    assert found["mse_published"] == pytest.approx(expected)
    assert found["mse"] == pytest.approx(np.square(differences).mean())
    by_file = np.mean([np.mean(differences[i : i + 50]) ** 2 for i in range(0, 1000, 50)])
    assert by_file > 10 * expected  # what earlier versions gave: every batch is of one kind


def images_in_clusters(seed, n=200, k=4):
    """Noise about one mean per cluster, far from the ends of the range."""
    rng = np.random.default_rng(seed)
    clusters = np.arange(n) % k
    means = rng.uniform(60, 200, size=(k, 1, 8, 8))
    images = means[clusters] + rng.normal(scale=20, size=(n, 1, 8, 8))
    return images.clip(5, 250).astype(np.uint8), clusters


def judge(samples, clusters, max_saturation=0.15, min_diversity=0.25):
    images, image_clusters = images_in_clusters(0)
    row = failures.degeneration(samples, clusters, images, image_clusters, 4, min_diversity)
    row["saturation_excess"] = failures.saturation_excess(samples, images)
    return row, failures.failures(row, max_saturation)


def test_healthy_model_is_not_flagged():
    row, names = judge(*images_in_clusters(1))
    assert names == ()
    assert (
        row["diversity_min"] == pytest.approx(1, abs=0.2) and abs(row["saturation_excess"]) < 0.01
    )


def test_saturated_model_is_flagged_and_the_datas_own_black_is_not():
    samples, clusters = images_in_clusters(1)
    assert judge(np.where(samples > 128, 255, 0).astype(np.uint8), clusters)[1] == ("saturated",)


def test_saturation_is_the_share_of_what_the_data_leave():
    rng = np.random.default_rng(0)
    data = np.where(rng.random((500, 1, 8, 8)) < 0.9, 0, 128).astype(np.uint8)
    left = 1 - failures.end_share(data)
    assert failures.saturation_excess(data, data) == 0
    assert failures.saturation_excess(np.zeros_like(data), data) == 1  # was `left`, about 0.1
    assert failures.saturation_excess(np.full_like(data, 128), data) == pytest.approx(
        -(1 - left) / left
    )
    half = np.where(rng.random(data.shape) < 0.5, 0, data).astype(np.uint8)
    assert failures.saturation_excess(half, data) == pytest.approx(0.5, abs=0.05)
    row = {"saturation_excess": failures.saturation_excess(half, data)}
    assert failures.failures(row, 0.15) == ("saturated",)
    # Black and white throughout: nothing is left to exceed.
    assert np.isnan(failures.saturation_excess(half, np.zeros_like(data)))


def test_collapsed_cluster_is_flagged():
    samples, clusters = images_in_clusters(1)
    samples[clusters == 2] = samples[2]
    row, names = judge(samples, clusters)
    assert names == ("collapsed",) and row["n_clusters_collapsed"] == 1
    assert row["diversity_min"] == 0


def test_cluster_that_nothing_is_assigned_to_counts_as_collapsed():
    samples, clusters = images_in_clusters(1)
    images, assigned = images_in_clusters(0)
    row = failures.degeneration(samples, clusters, images, np.minimum(assigned, 2), 4, 0.25)
    assert row["n_clusters_collapsed"] == 1 and row["diversity_min"] > 0.25


def test_thresholds_decide():
    samples, clusters = images_in_clusters(1)
    assert judge(samples, clusters, min_diversity=1.0)[1] == ("collapsed",)
    half = np.where(samples > 200, 255, samples).astype(np.uint8)
    assert judge(half, clusters, max_saturation=0.0)[1] == ("saturated",)
    assert judge(half, clusters, max_saturation=1.0)[1] == ()


def test_information_is_log_k_for_sure_and_even_assignments_and_nothing_without_either():
    sure = np.log(np.eye(4)[np.arange(12) % 4].clip(1e-300))
    assert metrics.cluster_information(sure) == pytest.approx(np.log(4))
    assert metrics.cluster_information(np.log(np.full((12, 4), 0.25))) == pytest.approx(0)
    one = np.log(np.eye(4)[np.zeros(12, int)].clip(1e-300))
    assert metrics.cluster_information(one) == pytest.approx(0, abs=1e-12)
    # By hand: half the images 0.9 to 0.1, half the other way round.
    mixed = np.log(np.array([[0.9, 0.1], [0.1, 0.9]]))
    entropy = -(0.9 * np.log(0.9) + 0.1 * np.log(0.1))
    assert metrics.cluster_information(mixed) == pytest.approx(np.log(2) - entropy)


def test_information_of_blocks_is_that_of_the_whole():
    logits = np.random.default_rng(0).normal(size=(100, 7))
    log_q = logits - np.log(np.exp(logits).sum(1, keepdims=True))
    q = np.exp(log_q)
    expected = -(q.mean(0) * np.log(q.mean(0))).sum() + (q * log_q).sum(1).mean()
    assert metrics.cluster_information([log_q[:64], log_q[64:]]) == pytest.approx(expected)
    assert metrics.cluster_information(log_q) == pytest.approx(expected)


def test_no_metric_turns_nan_into_a_number():
    nan = np.full((6, 3), np.nan)
    assert np.isnan(metrics.cluster_information([nan]))
    assert np.isnan(metrics.silhouette(nan, [0, 0, 1, 1, 2, 2]))
    assert all(map(np.isnan, metrics.reconstruction(nan[:, :2], 2).values()))


def test_every_metric_has_an_ideal_that_tables_and_searches_go_by():
    ends = {"high": "higher", "low": "lower"}
    for name, metric in metrics.METRICS.items():
        assert column(name).better == ends.get(metric.ideal, "neither")
        if not metric.has_better_end or metric.replaced_by is not None:
            with pytest.raises(ValueError, match=f"^{name} is no objective: "):
                check_objectives([name])
        else:
            assert check_objectives([name]) == (name,)
    ideals = {name: metrics.METRICS[name].ideal for name in ("saturation_excess", "diversity_min")}
    assert ideals == {"saturation_excess": 0, "diversity_min": 1}
    for metric in metrics.METRICS.values():
        assert metric.replaced_by is None or metric.replaced_by in metrics.METRICS


def test_silhouette_is_scikit_learns():
    rng = np.random.default_rng(0)
    clusters = rng.integers(0, 4, 300)
    clusters[0] = 7  # a cluster of one
    points = rng.normal(size=(300, 5)) + 1.5 * clusters[:, None]
    assert metrics.silhouette(points, clusters) == pytest.approx(silhouette_score(points, clusters))
    chosen = np.linspace(0, 299, 50).astype(int)
    expected = silhouette_score(points[chosen], clusters[chosen])
    assert metrics.silhouette(points, clusters, n_chosen=50) == pytest.approx(expected)
    assert np.isnan(metrics.silhouette(points, np.zeros(300, int)))
    assert metrics.silhouette(np.zeros((4, 2)), [0, 0, 1, 1]) == 0


def test_the_silhouette_is_the_same_bits_with_any_number_of_threads():
    from threadpoolctl import threadpool_limits

    rng = np.random.default_rng(0)
    for n in (24, 300, 1000):
        points, clusters = rng.standard_normal((n, 16)), rng.integers(0, 10, n)
        found = set()
        for threads in (1, 2):
            with threadpool_limits(limits=threads, user_api="blas"):
                found.add(metrics.silhouette(points, clusters))
        assert len(found) == 1
