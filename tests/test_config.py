"""Config: typed, ranged, named; keys that stay."""

import dataclasses

import pytest

from mpcc import config as c
from mpcc.config import (
    PRESETS,
    Config,
    cautions,
    from_dict,
    parse_assignment,
    training_key,
    value_text,
)


def test_presets_are_the_rows_of_appendix_c():
    rows = {
        name: (p.width, p.latent_size, p.prior_lr, p.iterations, p.n_clusters, p.latent_mode)
        for name, p in PRESETS.items()
    }
    assert rows["mnist"] == (12, 24, 1.6e-3, 125_000, 10, "plain")
    assert rows["omniglot"] == (16, 24, 1.6e-3, 125_000, 100, "plain")
    assert rows["fmnist"] == (24, 16, 1.6e-3, 75_000, 10, "copy")
    assert rows["cifar10"] == (96, 128, 6e-4, 75_000, 10, "split")
    assert rows["cifar20"] == (96, 128, 6e-4, 75_000, 20, "split")
    for name in ("mnist", "omniglot", "fmnist", "cifar10", "cifar20"):
        p = PRESETS[name]
        assert (p.batch_size, p.n_discriminator_steps, p.n_encoder_steps) == (50, 4, 4)
        assert (p.network_lr, p.prior_entropy_weight, p.prior_min_std) == (2e-4, 0.01, 0.5)
        assert (p.ema_decay, p.ema_start, p.n_standing_passes) == (0.9999, 1000, 16)
        assert p.image_size == 32


def test_dict_and_back_is_the_same_config():
    for preset in PRESETS.values():
        assert from_dict(preset.to_dict()) == preset


def test_short_names_reach_the_same_field():
    assert from_dict({"esteps": 2, "eta_p": 1e-3}) == Config(n_encoder_steps=2, prior_lr=1e-3)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"bach_size": 3}, "unknown field 'bach_size'; did you mean 'batch_size'?"),
        ({"dataset": "minst"}, "unknown dataset 'minst'; did you mean 'mnist'?"),
        ({"batch_size": 1}, "batch_size must be at least 2, got 1"),
        ({"batch_size": 2.5}, "batch_size must be a whole number, got 2.5"),
        ({"batch_size": True}, "batch_size must be a whole number, got True"),
        ({"prior_lr": float("nan")}, "prior_lr must be a finite number"),
        ({"prior_lr": "fast"}, "prior_lr must be a finite number, got 'fast'"),
        ({"image_size": 28}, "image_size must be one of 8, 16, 32, 64, got 28"),
        ({"latent_mode": "split", "latent_size": 30}, "latent_size must be a multiple of 4"),
        ({"esteps": 1, "n_encoder_steps": 2}, "n_encoder_steps is given twice"),
        ({"given_cluster_weights": [0.5, 0.5]}, "given_cluster_weights must be 10 positive"),
        ({"given_cluster_weights": [1e40] * 10}, "10 positive numbers, 1e-30 to 1e+30"),
        ({"given_cluster_weights": [1e20] + [1e-20] * 9}, "must differ by a factor of 1e+30"),
        ({"n_generated": 9}, "n_generated must be at least n_is_splits, 10, got 9"),
        ({"conditional": True, "prior": "normal"}, "conditional needs a prior with clusters"),
    ],
)
def test_bad_values_are_refused_in_one_line(values, message):
    with pytest.raises(ValueError) as caught:
        from_dict(values)
    assert message in str(caught.value) and "\n" not in str(caught.value)


def test_assignments_are_typed_by_the_field():
    assert parse_assignment("eta_p=6e-4") == ("prior_lr", 6e-4)
    assert parse_assignment("iterations=1e3") == ("iterations", 1000)
    assert parse_assignment("conditional=true") == ("conditional", True)
    assert parse_assignment("n_generated=none") == ("n_generated", None)
    assert parse_assignment("given_cluster_weights=1/2") == ("given_cluster_weights", (1.0, 2.0))
    for bad in ("iterations=1.5", "iterations=", "conditional=yes", "eta_p", "nosuch=1"):
        with pytest.raises(ValueError):
            parse_assignment(bad)


def test_every_range_names_a_field():
    assert set(c.RANGES) <= set(c.DEFAULTS)
    assert set(c.ALIASES.values()) <= set(c.DEFAULTS)


def test_seed_changes_the_trial_key_and_not_the_cell_key():
    a, b = Config(seed=0), Config(seed=1)
    assert a.cell_key == b.cell_key and a.trial_key != b.trial_key


def test_weights_as_whole_numbers_have_the_key_of_the_same_weights():
    whole, same = (
        {"given_cluster_weights": [kind(k) for k in range(1, 11)]} for kind in (int, float)
    )
    assert from_dict(whole).cell_key == from_dict(same).cell_key


def test_every_other_field_changes_the_cell_key():
    changes = {
        "dataset": "cifar10", "split": "train", "image_size": 16, "latent_mode": "copy",
        "upsampling": "nearest", "prior": "normal", "prior_floor": "published",
        "prior_entropy": "published", "n_generated": 100,
        "given_cluster_weights": (1.0,) * 9 + (2.0,), "prior_adversarial_lr": "network",
        "precision": "tf32", "image_ground": "black", "eval_split": "test",
    }  # fmt: skip
    for field in dataclasses.fields(Config):
        if field.name == "seed":
            continue
        value = changes.get(field.name)
        if value is None:
            value = (not field.default) if isinstance(field.default, bool) else None
        if value is None:
            value = field.default / 2 if isinstance(field.default, float) else field.default + 1
        base = Config(split="train" if field.name == "eval_split" else "all")
        assert base.override(**{field.name: value}).cell_key != base.cell_key, field.name


def test_keys_stay_from_version_to_version():
    # Records on people's disks are found by these: a change here loses them.
    assert Config().trial_key == TRIAL_KEY_OF_DEFAULTS
    assert Config(prior_lr=6e-4, seed=3).trial_key == TRIAL_KEY_OF_ANOTHER


def test_a_changed_default_changes_no_key_and_no_record(monkeypatch):
    # What differs in training never shares a key, and a record that lacks the field means the old.
    old, explicit = Config().cell_key, Config(width=13).cell_key
    monkeypatch.setitem(c.DEFAULTS, "width", 13)
    monkeypatch.setitem(Config.__init__.__kwdefaults__, "width", 13)
    monkeypatch.setitem(c.FIRST_DEFAULTS, "width", 12)
    assert Config().cell_key == explicit and Config(width=12).cell_key == old
    assert c.from_record({"cluster_weights": "uniform"}).width == 12  # a field that is gone
    with pytest.raises(ValueError, match="unknown field 'cluster_weights'"):
        c.from_record({"cluster_weights": "learnt"})
    assert c.from_record({}).width == 12 and c.from_record({"width": 14}).width == 14


def test_the_defaults_that_keys_go_by_are_frozen():
    # A default that changes goes into FIRST_DEFAULTS as it was; a new field is added here.
    frozen = """
        dataset=mnist split=all image_size=32 image_ground=white skip_damaged=false width=12
        latent_mode=plain upsampling=bilinear encoder_shares_discriminator=true conditional=false
        prior=gaussian_mixture n_clusters=10 latent_size=24 prior_init_log_var=1 prior_min_std=0.5
        prior_floor=variance prior_entropy=sampled prior_entropy_weight=0.01 prior_rank=2
        given_cluster_weights=none iterations=125000 batch_size=50
        n_discriminator_steps=4 n_encoder_steps=4 network_lr=2e-4 prior_lr=1.6e-3
        prior_adversarial_lr=prior prior_learns_from_encoder_loss=false ema_decay=0.9999
        ema_start=1000 eval_every=5000 eval_split=trained n_standing_passes=16 n_generated=none
        n_is_splits=10 max_saturation=0.15 min_diversity=0.25 seed=0 cpu_threads=1 precision=float32
        fast=true
    """
    assert dict(map(parse_assignment, frozen.split())) == c.DEFAULTS | c.FIRST_DEFAULTS


def test_what_trains_alike_has_one_training_key_and_nothing_else_has():
    weights = {"n_clusters": 3, "given_cluster_weights": (1.0, 2.0, 4.0)}
    alike = [
        ({}, {"eval_every": 3, "n_standing_passes": 3}),
        ({}, {"n_generated": 50, "n_is_splits": 5, "max_saturation": 0.5, "min_diversity": 0.5}),
        ({"split": "train"}, {"split": "train", "eval_split": "test"}),
        ({"width": 3}, {"width": 3, "skip_damaged": True}),
        ({"prior": "normal"}, {"prior": "normal", "n_clusters": 5, "prior_lr": 1e-3}),
        ({"ema_decay": 0.0}, {"ema_decay": 0.0, "ema_start": 7}),
        (weights, weights | {"given_cluster_weights": (0.3, 0.6, 1.2)}),
    ]
    keys = [{training_key(from_dict(changes)) for changes in pair} for pair in alike]
    assert [len(pair) for pair in keys] == [1] * len(alike)
    assert len(set.union(*keys)) == len(alike) - 1  # The first two are the defaults.
    assert training_key(Config(seed=1)) != training_key(Config())


TRIAL_KEY_OF_DEFAULTS = "650690f3ba8a"
TRIAL_KEY_OF_ANOTHER = "67d95e6b5684"


@pytest.mark.parametrize(
    ("value", "text"),
    [(6e-4, "6e-4"), (0.02, "0.02"), (0.01, "0.01"), (1.6e-3, "1.6e-3"), (0.0, "0"),
     (True, "true"), (50, "50"), (1.0, "1"), (0.9999, "0.9999"), (None, "none"),
     (0.0029999999999999996, "2.9999999999999996e-3"),
     (1234567.0, "1.234567e6"), (0.1 + 0.2, "0.30000000000000004")],
)  # fmt: skip
def test_values_are_written_as_people_write_them(value, text):
    assert value_text(value) == text
    assert not isinstance(value, float) or float(text) == value


def test_an_average_that_would_keep_an_early_generator_is_said_and_how_to_mend_it():
    slow = Config(iterations=3000)
    (text,) = cautions(slow)
    assert "82% of" in text and "iteration 1,000:" in text and "2,000 updates" in text
    mended = parse_assignment(text.split("--set ")[1].split()[0])
    assert cautions(slow.override(**dict([mended]))) == []
    assert not any(cautions(config) for config in PRESETS.values())
    assert cautions(Config(iterations=900)) == []  # The average never starts: plain weights.
