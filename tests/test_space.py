"""The space of a search: what its words and files mean, and what is refused in one line."""

import json
from pathlib import Path

import pytest
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

from mpcc.config import PRESETS
from tune.suggest.space import Space, parse_space, space_of_dict

DIGITS = PRESETS["digits"]
TWO_CLUSTERS = DIGITS.override(n_clusters=2)
ROOT = Path(__file__).resolve().parents[1]


def parse(*words: str) -> Space:
    return parse_space(words, DIGITS)


def test_words_mean_ranges_and_choices() -> None:
    space = parse(
        "eta_p=1e-4..1e-2:log", "esteps=1..6", "lambda_p=0,0.01,1", "prior_rank=2..8:step=2"
    )
    assert [axis.field for axis in space.axes] == [
        *("prior_lr", "n_encoder_steps", "prior_entropy_weight", "prior_rank")
    ]
    assert [axis.distribution for axis in space.axes] == [
        FloatDistribution(1e-4, 1e-2, log=True),
        IntDistribution(1, 6),
        CategoricalDistribution((0.0, 0.01, 1.0)),
        IntDistribution(2, 8, step=2),
    ]
    options = [axis.options and tuple(axis.options) for axis in space.axes]
    assert options == [None, (1, 2, 3, 4, 5, 6), (0.0, 0.01, 1.0), (2, 4, 6, 8)]


def test_names_and_truth_values_can_be_chosen_from() -> None:
    space = parse("prior=gaussian_mixture,laplace_mixture", "conditional=false,true")
    assert [axis.options for axis in space.axes] == [
        ("gaussian_mixture", "laplace_mixture"),
        (False, True),
    ]


def test_a_space_survives_its_spelling_and_its_file(tmp_path: Path) -> None:
    space = parse("eta_p=1e-4..1e-2:log", "esteps=1..6", "batch_size=25..100:step=25", "J=8,16")
    assert parse(*str(space).split()) == space
    assert space_of_dict(space.to_dict(), DIGITS) == space


def test_the_documented_file_is_a_space() -> None:
    space = parse(str(ROOT / "tune" / "space.toml"))
    assert str(space) == "eta_p=1e-3..0.02:log lambda_p=1e-3..1:log esteps=1..6"


def test_files_and_words_go_together(tmp_path: Path) -> None:
    file = tmp_path / "s.toml"
    file.write_text(
        '[space]\nprior_lr = { low = 1, high = 2 }\nprior = ["normal", "gaussian_mixture"]'
    )
    space = parse(str(file), "esteps=1..3")
    assert [axis.field for axis in space.axes] == ["prior_lr", "prior", "n_encoder_steps"]
    assert space.axes[0] == parse("eta_p=1..2").axes[0] and space.axes[0].options is None


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "the space is empty"),
        (["eta_q=1..2"], "unknown field 'eta_q'; did you mean 'eta_p'?"),
        (["seed=1..4"], "give the seeds of a point as --seeds"),
        (["eta_p=1e-3..1e-3"], "from a lower to a higher value, got 1e-3..1e-3"),
        (["eta_p=1e-2..1e-3"], "from a lower to a higher value"),
        (["lambda_p=0..1:log"], "must start above 0, got 0..1"),
        (["esteps=0..4"], "n_encoder_steps must be between 1 and 1000, got 0"),
        (["eta_p=1e-3..99"], "prior_lr must be between 0 and 10, got 99"),
        (["esteps=1..2.5"], "esteps must be a whole number, got '2.5'"),
        (["eta_p=fast..slow"], "eta_p must be a finite number, got 'fast'"),
        (["eta_p=0..inf"], "prior_lr must be a finite number, got inf"),
        (["prior=a..b"], "unknown prior 'a'; available:"),
        (["prior=normal..gaussian_mixture"], "prior takes no range; write its values"),
        (["conditional=false..true"], "conditional takes no range"),
        (["prior=gaussian_mixture,gausian"], "unknown prior 'gausian'"),
        (["eta_p=1e-3..1e-2:lag"], "eta_p must be like A..B, A..B:log or A..B:step=N, got"),
        (["esteps=1..6:step=4"], "step=4 of esteps must divide 1..6"),
        (["esteps=1..6:step=0"], "esteps must be like A..B, A..B:log or A..B:step=N, got"),
        (["eta_p=1..2:step=1"], "whole numbers and not logarithmic"),
        (["esteps=2"], "what does not vary is --set esteps=VALUE"),
        (["esteps=2,2"], "esteps has a value twice"),
        (["esteps=2,,3"], "esteps must be a whole number, got ''"),
        (["esteps=1..2", "n_encoder_steps=1..3"], "esteps is given twice"),
        (["no/such.toml"], "neither a file nor like"),
    ],
)
def test_a_bad_space_is_refused_in_one_line(words: list[str], message: str) -> None:
    with pytest.raises(ValueError) as error:
        parse(*words)
    assert message in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("esteps = 3", "s.toml: a space file holds the table [space]"),
        ("", "s.toml: a space file holds the table [space]"),
        ("[space]\nesteps = 3", "must be a list of values or { low = A, high = B },"),
        ("[space]\nesteps = { low = 1 }", "must be a list of values or"),
        ("[space]\nesteps = { low = 1, high = 3, lag = 1 }", "esteps must be a list of values or"),
        ("[space]\nesteps = { low = 1, high = 3, log = 1 }", "log of esteps must be true or false"),
        ("[space]\nesteps = { low = 1, high = 3, step = true }", "step=True of esteps must divide"),
        ("[space]\nesteps = { low = 1, high = 3, step = 0 }", "step=0 of esteps must divide 1..3"),
        ("[space]\nesteps = [1, true]", "n_encoder_steps must be a whole number, got True"),
        ("[space", "is not TOML"),
    ],
)
def test_a_bad_file_is_refused_in_one_line(text: str, message: str, tmp_path: Path) -> None:
    file = tmp_path / "s.toml"
    file.write_text(text)
    with pytest.raises(ValueError) as error:
        parse(str(file))
    assert message in str(error.value)


def test_drawn_numbers_have_few_digits_and_stay_inside() -> None:
    (axis,) = parse("eta_p=0.00123456..0.0198765").axes
    assert axis.value(0.0123456789) == 0.0123
    assert axis.value(0.0012345601) == 0.00123456 and axis.value(0.01987) == 0.0198765
    assert parse("esteps=1..6").axes[0].value(3) == 3


def test_several_numbers_are_a_choice_as_well() -> None:
    (axis,) = parse_space(["given_cluster_weights=1/3,0.5/2.123456789"], TWO_CLUSTERS).axes
    assert axis.options == ((1.0, 3.0), (0.5, 2.123456789))
    assert [axis.value(drawn) for drawn in ("1/3", "0.5/2.123456789")] == list(axis.options)
    table = json.loads(json.dumps({axis.field: axis.entry}))
    assert space_of_dict(table, TWO_CLUSTERS).axes == (axis,)


def test_only_a_space_without_broken_numbers_has_an_end() -> None:
    assert len(list(parse("esteps=1..3", "prior=gaussian_mixture,normal").points())) == 6
    assert list(parse("esteps=1..3", "eta_p=1e-3..1e-2").points()) == []
