"""Algorithm 1: who moves whom, what each setting does, and runs that go on to the bit."""

import dataclasses
import math
import shutil
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.metrics import adjusted_rand_score

import mpcc
from mpcc.config import ALIVE, EVALUATION, PRESETS, Config, dead, training_key, without_dead
from mpcc.data.image_set import DataError, ImageSet, load
from mpcc.evaluation import baseline, classifier, metrics, plots
from mpcc.evaluation.evaluate import evaluate
from mpcc.evaluation.trial_pictures import write_pictures
from mpcc.model.networks import n_parameters
from mpcc.runs import run_dir
from mpcc.training import trainer
from mpcc.training.algorithm import (
    discriminator_batches,
    encoder_batches,
    train_step,
    update_discriminator,
    update_encoder,
    update_encoder_and_prior,
    update_generator_and_prior,
)
from mpcc.training.device import resolve_device
from mpcc.training.resume import restore
from mpcc.training.state import build_state
from mpcc.training.trainer import train, weights_hash, write_checkpoint
from mpcc.use.model import as_trained


@pytest.fixture(scope="module")
def some_digits(digits) -> ImageSet:
    return ImageSet(digits.images[:80], digits.labels[:80], digits.label_names, "f" * 12)


@pytest.fixture(autouse=True)
def no_pictures(monkeypatch):
    """They are most of the time; a test that looks at them asks for `pictures`."""
    monkeypatch.setattr(trainer, "write_pictures", lambda *given: {})


@pytest.fixture
def pictures(no_pictures, monkeypatch):
    monkeypatch.setattr(trainer, "write_pictures", write_pictures)


@pytest.fixture(scope="module")
def ended(some_digits, tmp_path_factory) -> Path:
    """A trial that is done."""
    path = tmp_path_factory.mktemp("ended") / "r"
    list(train(PRESETS["tiny"], path, image_set=some_digits, checkpoint_seconds=0, device="cpu"))
    return path


@pytest.fixture
def copy(ended, tmp_path) -> Path:
    """The same, to be changed."""
    return Path(shutil.copytree(ended, tmp_path / "r"))


def snapshot(state) -> dict[str, torch.Tensor]:
    """Raw parameters of everything that can move."""
    modules = {
        "generator": state.generator,
        "discriminator": [m for n, m in state.discriminator.named_children() if n != "trunk"],
        "trunk": state.discriminator.trunk,
        "encoder": [m for n, m in state.encoder.named_children() if n != "trunk"],
        "encoder_trunk": state.encoder.trunk,
        "prior": state.prior,
    }
    return {
        name: torch.cat([
            p.detach().flatten().clone()
            for m in (module if isinstance(module, list) else [module])
            for p in m.parameters()
        ])
        for name, module in modules.items()
    }  # fmt: skip


def moved(before, after) -> set[str]:
    return {name for name in before if not torch.equal(before[name], after[name])}


@pytest.mark.parametrize("fast", [True, False])
@pytest.mark.parametrize(
    ("update", "shared", "apart"),
    [
        (lambda s: update_discriminator(s, *next(discriminator_batches(s))),
         {"discriminator", "trunk", "encoder_trunk"},
         {"discriminator", "trunk"}),
        (update_generator_and_prior, {"generator", "prior"}, {"generator", "prior"}),
        (update_encoder_and_prior,
         {"encoder", "trunk", "encoder_trunk", "prior"}, {"encoder", "encoder_trunk", "prior"}),
        (lambda s: update_encoder(s, *next(encoder_batches(s))),
         {"encoder", "trunk", "encoder_trunk"}, {"encoder", "encoder_trunk"}),
    ],
    ids=["discriminator", "generator and prior", "encoder and prior", "encoder"],
)  # fmt: skip
def test_each_update_moves_its_own_parameters_and_no_others(
    update, shared, apart, fast, tiny, some_digits
):
    for shares, expected in ((True, shared), (False, apart)):
        config = tiny.override(encoder_shares_discriminator=shares, fast=fast)
        state = build_state(config, some_digits)
        with torch.no_grad():
            before = snapshot(state)
            update(state)
        assert moved(before, snapshot(state)) == expected


def prior_after_encoder_update(config: Config, images) -> torch.Tensor:
    state = build_state(config, images, dtype=torch.float64)
    with torch.no_grad():
        update_encoder_and_prior(state)
    return snapshot(state)["prior"]


def test_the_encoder_loss_moves_the_prior_only_where_the_setting_says_so(tiny, some_digits):
    text = prior_after_encoder_update(tiny, some_digits)
    code = prior_after_encoder_update(
        tiny.override(prior_learns_from_encoder_loss=True), some_digits
    )
    assert not torch.equal(text, code)
    # By the text the prior's step does not depend on the encoder's weights at all.
    state = build_state(tiny, some_digits, dtype=torch.float64)
    with torch.no_grad():
        state.parts["encoder"].raw[0].mul_(1.5).add_(0.01)
        state.parts["encoder"].refresh()
        update_encoder_and_prior(state)
    assert torch.equal(snapshot(state)["prior"], text)


def test_the_prior_steps_with_the_networks_rate_where_the_text_says_so(tiny, some_digits):
    steps = {}
    for rate in ("prior", "network"):
        config = tiny.override(prior_adversarial_lr=rate, network_lr=1e-5, prior_lr=1e-2)
        state = build_state(config, some_digits, dtype=torch.float64)
        with torch.no_grad():
            before = snapshot(state)["prior"]
            update_generator_and_prior(state)
            steps[rate] = (snapshot(state)["prior"] - before).abs().max()
    # Adam's first step is as long as its rate.
    torch.testing.assert_close(steps["prior"].item(), 1e-2, rtol=1e-3, atol=0)
    torch.testing.assert_close(steps["network"].item(), 1e-5, rtol=1e-3, atol=0)


def test_only_the_first_encoder_step_moves_the_prior(tiny, some_digits):
    one = build_state(tiny.override(n_encoder_steps=1), some_digits)
    four = build_state(tiny.override(n_encoder_steps=4), some_digits)
    for state in (one, four):
        train_step(state)
    assert torch.equal(snapshot(one)["prior"], snapshot(four)["prior"])
    assert not torch.equal(snapshot(one)["encoder"], snapshot(four)["encoder"])


def test_average_is_a_copy_until_its_start_and_lags_after(tiny, some_digits):
    state = build_state(tiny.override(ema_start=2, ema_decay=0.9), some_digits)
    for _ in range(2):
        train_step(state)
    live = state.parts["generator"].raw[0]
    assert torch.equal(state.average[0], live)
    before = state.average[0].clone()
    train_step(state)
    torch.testing.assert_close(state.average[0], 0.9 * before + 0.1 * live)


# -- every knob is alive --------------------------------------------------------------------------

CHANGES = {
    "dataset": None,  # tests/test_data.py: another data set is other images
    "split": None,  # likewise
    "image_size": None,  # tests/test_networks.py: other shapes
    "image_ground": None,  # tests/test_folder.py: what is transparent has another colour
    "skip_damaged": None,  # tests/test_folder.py: damaged files are left out, not refused
    "n_is_splits": None,  # tests/test_generation_metrics.py
    "n_generated": None,  # test_generated_images_are_scored_or_the_reason_is_recorded
    "cpu_threads": None,  # test_threads_are_those_of_the_configuration
    "latent_mode": "copy",
    "upsampling": "nearest",
    "encoder_shares_discriminator": False,
    "conditional": True,
    "prior": "laplace_mixture",
    "n_clusters": 11,
    "latent_size": 6,
    "prior_init_log_var": 0.5,
    "prior_min_std": 1.0,
    "prior_floor": "published",
    "prior_entropy": "published",
    "prior_entropy_weight": 1.0,
    "prior_rank": 1,
    "given_cluster_weights": (1.0,) * 9 + (9.0,),
    "width": 2,
    "iterations": 3,
    "batch_size": 9,
    "n_discriminator_steps": 1,
    "n_encoder_steps": 2,
    "network_lr": 1e-4,
    "prior_lr": 1e-3,
    "prior_adversarial_lr": "network",
    "prior_learns_from_encoder_loss": True,
    "ema_decay": 0.5,
    "ema_start": 0,
    "eval_every": 1,
    "eval_split": None,  # test_images_that_were_not_trained_on_are_scored_by_the_trained_ones
    "n_standing_passes": 5,
    "max_saturation": None,  # test_saturation_is_named_beyond_its_threshold
    "min_diversity": 1.0,
    "seed": 1,
    "precision": "bfloat16",
    "fast": False,
}
BASE_FOR = {
    "prior_rank": {"prior": "low_rank_mixture"},
    "ema_decay": {"ema_start": 0},
    "ema_start": {"ema_start": 3, "ema_decay": 0.5},
}


def test_every_field_is_listed_as_alive():
    assert set(CHANGES) == {f.name for f in dataclasses.fields(Config)}


def observed(config: Config, images: ImageSet, path) -> dict:
    list(train(config, path, image_set=images, device="cpu"))
    result = run_dir.read_result(path)
    # Key, seconds and their seal differ by design; everything else must tell the two apart.
    by_design = ("trial_key", "seconds", "seal")
    return {k: v for k, v in result.items() if k not in by_design} | {"rows": evaluations(path)}


def evaluations(path) -> list[dict]:
    """A trial's evaluations, but for their times."""
    return [{k: v for k, v in r.items() if k != "seconds"} for r in run_dir.read_metrics(path)]


@pytest.fixture(scope="module")
def base_results(some_digits, tmp_path_factory):
    known: dict[str, dict] = {}

    def base(changes: dict) -> dict:
        key = str(changes)
        if key not in known:
            config = PRESETS["tiny"].override(**changes)
            known[key] = observed(config, some_digits, tmp_path_factory.mktemp("base") / "run")
        return known[key]

    return base


@pytest.mark.parametrize("field", [f for f, value in CHANGES.items() if value is not None])
def test_changing_any_field_changes_something_observable(
    field, some_digits, base_results, tmp_path
):
    changes = BASE_FOR.get(field, {})
    base = base_results(changes)
    config = PRESETS["tiny"].override(**changes | {field: CHANGES[field]})
    other = observed(config, some_digits, tmp_path / "run")
    assert other != base
    if field in ("eval_every", "n_standing_passes", "min_diversity"):
        assert other["weights_sha256"] == base["weights_sha256"]  # evaluation leaves training alone


DEAD_IN = {
    **dict.fromkeys(ALIVE, {"prior": "normal"}),
    "prior_entropy": {"prior_entropy_weight": 0.0},
    "prior_rank": {},
    "ema_decay": {"ema_start": 100},
    "ema_start": {"ema_decay": 0.0},
    "n_is_splits": {"n_generated": 8},  # Fewer than splits: at 8×8 pixels Inception scores nothing.
    "skip_damaged": {},
}
"""Field that is not always alive -> changes of `tiny` under which it is dead."""
OTHER = {"n_is_splits": 3, "skip_damaged": True, "given_cluster_weights": (1.0,) * 9 + (9.0,)}


@pytest.mark.parametrize("field", ALIVE)
def test_a_dead_field_changes_nothing(field, some_digits, base_results, tmp_path):
    changes = DEAD_IN[field]
    config = PRESETS["tiny"].override(**changes)
    changed = config.override(**{field: OTHER.get(field, CHANGES[field])})
    assert field in dead(config) and field in dead(changed)
    assert config != changed and without_dead(config) == without_dead(changed)
    before, after = base_results(changes), observed(changed, some_digits, tmp_path / "run")
    for found in (before, after):  # The term is still looked at, without a weight in the loss.
        for row in (found["metrics"], *found["rows"]):
            row.pop("loss/entropy" if field == "prior_entropy" else "", None)
    assert before == after


def test_alive_fields_keep_configurations_apart():
    for field, value in CHANGES.items():
        base = PRESETS["tiny"].override(**BASE_FOR.get(field, {}))
        if value is not None and field not in dead(base):
            other = base.override(**{field: value})
            assert without_dead(base) != without_dead(other), field
            trained_alike = training_key(base) == training_key(other)
            assert trained_alike == (field in EVALUATION), field


def test_saturation_is_named_beyond_its_threshold(tiny, some_digits, tmp_path):
    for threshold, names in ((0.1, ["saturated"]), (0.3, [])):
        state = build_state(tiny.override(max_saturation=threshold), some_digits)
        run = trainer._Run(state, tmp_path, 60, None)
        assert run._end(run_dir.DONE, None, {"saturation_excess": 0.2})["failures"] == names


def test_generated_images_are_scored_or_the_reason_is_recorded(
    tiny, some_digits, tmp_path, monkeypatch
):
    monkeypatch.delenv("MPCC_INCEPTION_WEIGHTS", raising=False)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "no-weights"))
    monkeypatch.setattr(classifier, "_STEPS", 20)
    large = some_digits.images.repeat_interleave(2, 2).repeat_interleave(2, 3)
    for n, size, reason in (
        (None, 8, "no images were drawn"),
        (20, 8, "their network is not made for 8×8 pixels"),
        (20, 16, "Inception weights missing"),
    ):
        images = some_digits
        if size == 16:
            images = dataclasses.replace(some_digits, images=large, fingerprint="e" * 12)
        config, path = tiny.override(n_generated=n, image_size=size), tmp_path / f"{n}-{size}"
        list(train(config, path, image_set=images))
        result = run_dir.read_result(path)
        scores = {"inception_score", "fid", "kid"}
        assert set(result["unavailable"]) == (scores if n else scores | {"fid_cnn"})
        assert reason in result["unavailable"]["fid"]
        assert ("fid_cnn" in result["metrics"]) == (n is not None)


def test_threads_are_those_of_the_configuration(tiny, some_digits, tmp_path):
    before = torch.get_num_threads()
    try:
        next(train(tiny.override(cpu_threads=2), tmp_path / "r", image_set=some_digits))
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)


def test_a_device_that_is_not_here_is_refused_whatever_its_number(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert resolve_device("cuda:1") == torch.device("cuda:1")
    for index in (2, 128, 256, 10**12):  # torch's own reading of cuda:256 is cuda:0
        with pytest.raises(ValueError, match=f"device cuda:{index} is not here: there are 2 GPUs"):
            resolve_device(f"cuda:{index}")


@pytest.mark.parametrize("others", ["none", "ieee", "tf32"])
@pytest.mark.parametrize("precision", ["float32", "tf32"])
def test_a_model_multiplies_in_the_precision_of_its_trial(precision, others, tiny):
    products = torch.backends.cuda.matmul, torch.backends.cudnn.conv
    before = [each.fp32_precision for each in products]
    try:
        for each in products:
            each.fp32_precision = others
        with as_trained(tiny.override(precision=precision), torch.device("cuda")):
            inside = {each.fp32_precision == "tf32" for each in products}
            cudnn = torch.backends.cudnn
            assert cudnn.enabled and cudnn.deterministic and not cudnn.benchmark
        assert inside == {precision == "tf32"}
        assert {each.fp32_precision for each in products} == {others}
    finally:
        for each, was in zip(products, before, strict=True):
            each.fp32_precision = was


# -- runs -----------------------------------------------------------------------------------------


def files(path) -> dict[str, bytes]:
    """What must be equal of two runs of one trial: all but times."""
    result = run_dir.read_result(path)
    result.pop("seconds"), result.pop("seal")
    others = [p for p in path.iterdir() if p.suffix in (".png", ".gz", ".mpcc")]
    return {"result": result, "rows": evaluations(path)} | {p.name: p.read_bytes() for p in others}


def test_the_errors_of_reconstruction_are_those_of_all_images(tiny, some_digits):
    state = build_state(tiny, some_digits)
    with torch.no_grad():
        train_step(state)
        found = evaluate(state)
        x = some_digits.images / 127.5 - 1
        difference = (x - found.generator(found.z_means, found.clusters)).double()
    assert found.metrics["mse"] == pytest.approx(float(difference.square().mean()), rel=1e-6)
    n = tiny.batch_size
    order = np.random.default_rng(0).permutation(len(x))[: len(x) // n * n]
    squared = [float(difference[part].mean()) ** 2 for part in order.reshape(-1, n)]
    assert found.metrics["mse_published"] == pytest.approx(np.mean(squared), rel=1e-5)


@pytest.mark.parametrize("changes", [{"n_clusters": 1}, {"n_clusters": 3}, {"prior": "normal"}, {}])
def test_failures_rest_on_two_hundred_samples_at_least(changes, tiny, some_digits):
    found = evaluate(build_state(tiny.override(**changes), some_digits))
    assert (
        len(found.samples)
        == len(found.sample_clusters)
        == {3: 201}.get(changes.get("n_clusters"), 200)
    )


def test_what_a_model_or_its_data_do_not_have_is_given_a_reason(tiny, some_digits):
    everything = {
        name
        for name, metric in metrics.METRICS.items()
        if metric.replaced_by is None and not name.endswith(metrics.TEST)
    }
    at_the_end = {n for n in everything if n.startswith("loss/")}
    at_the_end |= {"inception_score", "fid", "kid", "fid_cnn", "seed_agreement"}
    unlabelled = dataclasses.replace(some_digits, labels=None)
    ink = (some_digits.images > 99).to(torch.uint8) * 255
    black_and_white = dataclasses.replace(some_digits, images=ink)
    for config, images, missing in (
        (tiny, some_digits, set()),
        (tiny, unlabelled, {"acc_majority", "acc_hungarian", "nmi", "ari"}),
        (tiny, black_and_white, {"saturation_excess"}),
        (tiny.override(n_clusters=1), some_digits, {"silhouette", "cluster_information_share"}),
        (tiny.override(batch_size=len(some_digits) + 1), some_digits, {"mse_published"}),
        (tiny.override(prior="normal"), some_digits, everything & set(metrics.NEED_CLUSTERS)),
    ):
        state = build_state(config, images)
        for _ in range(5):  # Until more than one cluster is used.
            train_step(state)
        found = evaluate(state)
        assert everything - at_the_end - missing == set(found.metrics)
        assert missing <= set(found.unavailable) and not set(found.metrics) & set(found.unavailable)
        assert all(math.isfinite(value) for value in found.metrics.values())


@pytest.mark.parametrize("part", ["generator", "discriminator", "encoder", "prior"])
@pytest.mark.parametrize("fast", [True, False])
def test_weights_that_are_not_finite_at_an_evaluation_are_a_divergence(
    part, fast, tiny, some_digits, tmp_path, monkeypatch
):
    # The losses of the last step are finite: it is the step itself that broke the weights.
    usual = trainer.train_step

    def broken(state):
        terms = usual(state)
        if state.iteration == 2:
            state.parts[part].raw[-1].view(-1)[-1] = math.nan
        return terms

    monkeypatch.setattr(trainer, "train_step", broken)
    look = trainer.evaluate
    monkeypatch.setattr(trainer, "evaluate", lambda state: time.sleep(0.3) or look(state))
    ends = list(train(tiny.override(fast=fast), tmp_path, image_set=some_digits, device="cpu"))
    result = run_dir.read_result(tmp_path)
    assert ends[-1].state == result["state"] == "diverged" and result["metrics"] == {}
    assert result["cause"] == f"a weight of the {part} is not finite at iteration 2"
    assert result["seconds"]["evaluate"] >= 0.3


def test_an_evaluation_holds_nothing_of_images_times_clusters_times_dimensions():
    code = """if True:
        import resource, torch
        from mpcc.config import PRESETS
        from mpcc.data.image_set import ImageSet
        from mpcc.evaluation.evaluate import evaluate
        from mpcc.training.state import build_state
        torch.set_num_threads(1)
        config = PRESETS["tiny"].override(n_clusters=100, latent_size=24, batch_size=50)
        pixels = torch.arange(70_000 * 64).mul_(37).remainder_(251).to(torch.uint8)
        data = ImageSet(pixels.view(-1, 1, 8, 8), torch.arange(70_000) % 100, (), "0" * 12)
        state = build_state(config, data)
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        evaluate(state)
        print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024)
    """
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert int(done.stdout) < 400  # megabytes; memberships alone took 2,000 once


def test_what_only_looks_on_fails_no_trial(tiny, some_digits, tmp_path, monkeypatch, pictures):
    def broken(*_, **__):
        raise KeyError("out of order")

    for module, name in (
        (plots, "latent_picture"),
        (plots, "curve_picture"),
        (classifier, "load_classifier"),
        (baseline, "kmeans_acc_majority"),
    ):
        monkeypatch.setattr(module, name, broken)
    ends = list(train(tiny.override(n_generated=20), tmp_path, image_set=some_digits, device="cpu"))
    result = run_dir.read_result(tmp_path)
    assert ends[-1].state == result["state"] == "done" and result["metrics"]["acc_majority"] > 0
    for name in ("latent.png", "curves.png", "fid_cnn", "kmeans_acc_majority"):
        assert result["unavailable"][name] == "KeyError: 'out of order'"
    assert (tmp_path / "samples.png").exists() and result["baseline"] == {}


def test_checkpoints_take_a_small_share_of_the_time(tiny, some_digits, tmp_path, monkeypatch):
    usual = trainer.write_checkpoint

    def slow(path, state, *rest):
        time.sleep(0.02)
        usual(path, state, *rest)

    monkeypatch.setattr(trainer, "write_checkpoint", slow)
    run = trainer._Run(build_state(tiny, some_digits), tmp_path, 0.1, None)
    assert run.between_checkpoints == 0.1
    run._save()
    assert run.between_checkpoints >= 0.02 / trainer.MAX_CHECKPOINT_SHARE
    always = trainer._Run(run.state, tmp_path, 0, None)
    always._save()
    assert always.between_checkpoints == 0


@pytest.mark.parametrize("fast", [True, False])
def test_resumed_run_equals_uninterrupted_run(fast, tiny, some_digits, tmp_path):
    config = tiny.override(iterations=7, eval_every=2, fast=fast)
    list(train(config, tmp_path / "whole", image_set=some_digits))
    for _ in range(2):
        first = train(config, tmp_path / "parts", image_set=some_digits)
        next(first)
        first.close()
    last = list(train(config, tmp_path / "parts", image_set=some_digits))
    assert last[-1].state == "done" and last[-1].iteration == 7
    assert files(tmp_path / "parts") == files(tmp_path / "whole")
    assert len(files(tmp_path / "whole")["rows"]) == 4


def test_kill_between_a_row_and_its_checkpoint_repeats_the_row_once(tiny, some_digits, tmp_path):
    config = tiny.override(iterations=6, eval_every=2)
    list(train(config, tmp_path / "whole", image_set=some_digits))
    run = train(config, tmp_path / "cut", image_set=some_digits, checkpoint_seconds=0)
    next(run), next(run)
    # As after SIGKILL: the rows of iterations 2 and 4 are there, the checkpoint is that of 2 or 3.
    saved = (tmp_path / "cut" / run_dir.CHECKPOINT).read_bytes()
    run.close()
    (tmp_path / "cut" / run_dir.CHECKPOINT).write_bytes(saved)
    list(train(config, tmp_path / "cut", image_set=some_digits))
    assert files(tmp_path / "cut") == files(tmp_path / "whole")


def test_checkpoints_come_after_so_many_iterations_where_these_are_given(
    tiny, some_digits, tmp_path, monkeypatch
):
    seen = []
    monkeypatch.setattr(
        trainer, "write_checkpoint", lambda _, state, *end: seen.append(state.iteration)
    )
    config = tiny.override(iterations=7)
    for _ in train(config, tmp_path / "a", image_set=some_digits, checkpoint_iterations=3):
        pass
    assert seen == [3, 6, 7]


def test_ended_trial_says_so_at_once_and_writes_nothing(tiny, ended):
    before = {p: p.stat().st_mtime_ns for p in ended.iterdir()}
    again = list(train(tiny, ended))
    assert [p.state for p in again] == ["done"]
    assert {p: p.stat().st_mtime_ns for p in ended.iterdir()} == before


def test_a_finished_trial_whose_result_is_deleted_ends_again_alike(tiny, some_digits, ended, copy):
    (copy / run_dir.RESULT).unlink()
    list(train(tiny, copy, image_set=some_digits))
    assert files(copy) == files(ended)


def test_a_checkpoint_of_other_networks_is_not_half_taken_over(tiny, some_digits, tmp_path, caplog):
    state = build_state(tiny.override(width=2), some_digits)
    train_step(state)
    state.config = tiny  # As another version's networks under the same settings would be.
    run_dir.open_run(tmp_path / "r", tiny)
    write_checkpoint(tmp_path / "r", state)
    for path in (tmp_path / "r", tmp_path / "fresh"):
        for _ in train(tiny, path, image_set=some_digits):
            pass
    assert "another version wrote it; starting over" in caplog.text
    found, fresh = (run_dir.read_result(tmp_path / name) for name in ("r", "fresh"))
    assert found["weights_sha256"] == fresh["weights_sha256"]


def test_same_seed_gives_the_same_files_and_another_seed_another(
    tiny, some_digits, tmp_path, pictures
):
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        torch.manual_seed(123 if name == "b" else 0)  # the global stream must not matter
        list(train(tiny.override(seed=seed), tmp_path / name, image_set=some_digits))
    a, b, c = (files(tmp_path / name) for name in "abc")
    assert a == b and a["result"]["weights_sha256"] != c["result"]["weights_sha256"]
    assert {"model.mpcc", "clusters.csv.gz", "samples.png", "latent.png"} <= set(a)


def test_other_data_than_before_are_refused(tiny, some_digits, tmp_path):
    run = train(tiny, tmp_path / "r", image_set=some_digits)
    next(run)
    run.close()
    other = dataclasses.replace(some_digits, fingerprint="a" * 12)
    with pytest.raises(run_dir.RunDirError, match="begun on digits data"):
        next(train(tiny, tmp_path / "r", image_set=other))


def test_run_directory_explains_itself(tiny, some_digits, ended):
    path = ended
    assert run_dir.read_config(path) == tiny
    provenance = run_dir.read_json(path / run_dir.PROVENANCE)
    assert {"code", "python", "torch", "machine", "device", "data"} <= set(provenance)
    result = run_dir.read_result(path)
    assert result["n_parameters"]["generator"] == n_parameters(
        build_state(tiny, some_digits).generator
    )
    assert {"acc_majority", "acc_hungarian", "mse", "mse_published"} <= set(result["metrics"])


def test_what_would_fail_later_is_refused_before_anything_is_written(tiny, some_digits, tmp_path):
    n = len(some_digits)
    unlabelled = dataclasses.replace(some_digits, labels=None)
    one = dataclasses.replace(some_digits, images=some_digits.images[:1])
    rgb = dataclasses.replace(some_digits, images=some_digits.images.repeat(1, 3, 1, 1))
    for changes, images, message in (
        ({"conditional": True}, unlabelled, "conditional=true needs labels"),
        ({"conditional": True, "n_clusters": 9}, some_digits, "have 10 labels: set n_clusters=10"),
        ({"conditional": True, "n_clusters": 11}, some_digits, "have 10 labels: set n_clusters=10"),
        ({"n_clusters": n + 1}, some_digits, f"is more than the {n} images of digits"),
        ({}, one, "at least 2 images of digits, got 1"),
        ({"image_size": 16}, some_digits, "is of images of 1×16×16 .*, these are 1×8×8"),
        ({}, rgb, "is of images of 1×8×8 .*, these are 3×8×8"),
    ):
        with pytest.raises(DataError, match=message):
            next(train(tiny.override(**changes), tmp_path / "r", image_set=images))
    with pytest.raises(ValueError, match="precision=tf32 needs a GPU"):
        next(train(tiny.override(precision="tf32"), tmp_path / "r", device="cpu"))
    assert not (tmp_path / "r").exists()
    config = tiny.override(prior="normal", n_clusters=n + 1, iterations=1)
    list(train(config, tmp_path / "r", image_set=some_digits))


def test_images_that_were_not_trained_on_are_scored_by_the_trained_ones(tmp_path):
    trained = PRESETS["tiny"].override(split="train", iterations=20)
    for name, config in (("a", trained), ("b", trained.override(eval_split="test"))):
        list(train(config, tmp_path / name, device="cpu"))
    plain, both = (run_dir.read_result(tmp_path / name) for name in "ab")
    assert both["weights_sha256"] == plain["weights_sha256"]
    extra = {n for n in both["metrics"] if n not in plain["metrics"]}
    named = ("acc_majority", "acc_hungarian", "nmi", "ari", "mse")
    assert extra == {f"{name}@test" for name in named}
    assert {n: both["metrics"][n] for n in plain["metrics"]} == plain["metrics"]
    # Each score again, from the model as users load it and by other means.
    everything = load(trained.override(split="all"))
    kept = np.arange(len(everything)) % 5 != 4
    model, x, y = mpcc.load(tmp_path / "b"), everything.images.numpy(), everything.labels.numpy()
    ours, theirs = model.predict(x[kept]), model.predict(x[~kept])
    label = {k: np.bincount(y[kept][ours == k]).argmax() for k in set(ours)}
    found = both["metrics"]
    right = np.mean([label.get(k, -1) == t for k, t in zip(theirs, y[~kept], strict=True)])
    assert found["acc_majority@test"] == pytest.approx(right)
    assert found["ari@test"] == pytest.approx(adjusted_rand_score(y[~kept], theirs))
    # With all images as the test: the score of the training itself.
    same = metrics.clustering(y[kept], ours, 10, trained=(y[kept], ours))
    assert same["acc_hungarian"] == pytest.approx(plain["metrics"]["acc_hungarian"])
    with pytest.raises(ValueError, match="eval_split=test needs split=train"):
        trained.override(split="all", eval_split="test")


def test_restore_gives_the_model_as_it_ended_or_raises(tiny, some_digits, copy, caplog):
    state = build_state(tiny, some_digits)
    restore(state, copy)
    assert state.iteration == tiny.iterations and not caplog.records
    assert run_dir.read_result(copy)["weights_sha256"] == weights_hash(state)
    for file in copy.glob("checkpoint*"):
        file.unlink()
    with pytest.raises(run_dir.RunDirError, match="has ended, and its model cannot be loaded"):
        restore(build_state(tiny, some_digits), copy)


@pytest.mark.parametrize(("changes", "labelled"), [({}, False), ({"prior": "normal"}, True)])
def test_a_model_without_labels_or_clusters_ends_with_pictures_and_without_accuracies(
    changes, labelled, tiny, some_digits, tmp_path, pictures
):
    images = some_digits if labelled else dataclasses.replace(some_digits, labels=None)
    list(train(tiny.override(**changes), tmp_path / "r", image_set=images))
    result = run_dir.read_result(tmp_path / "r")
    assert result["state"] == "done" and len(list((tmp_path / "r").glob("*.png"))) == 4
    assert not any(name.startswith("acc") for name in result["metrics"])
    assert ("n_clusters_used" in result["metrics"]) == (not labelled)
