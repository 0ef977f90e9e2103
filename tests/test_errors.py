"""The one exception and the nearest name."""

import pickle

import pytest

from lit_opt.errors import RecipeError, nearest


def test_one_problem_stands_alone_and_several_are_listed():
    assert str(RecipeError(["a: wrong."])) == "a: wrong."
    error = RecipeError(["a: wrong.", "b: wrong."])
    assert str(error) == "2 problems:\n  - a: wrong.\n  - b: wrong."
    assert error.problems == ["a: wrong.", "b: wrong."] and isinstance(error, ValueError)


def test_an_error_survives_another_process():
    error = pickle.loads(pickle.dumps(RecipeError(["a", "b"])))
    assert isinstance(error, RecipeError) and error.problems == ["a", "b"]


@pytest.mark.parametrize(
    ("typed", "near"), [("adamww", "adamw"), ("AdamW", "adamw"), ("SGD", "sgd"), ("LAMB", "lamb"), ("lars2", "lars")]
)
def test_nearest(typed, near):
    assert nearest(typed, ["adam", "adamw", "lamb", "lars", "sgd"]) == f" Did you mean {near!r}?"


@pytest.mark.parametrize("typed", ["zzzzzz", "", None, 7])
def test_nothing_near(typed):
    assert nearest(typed, ["adam", "sgd"]) == ""
    assert nearest(typed, []) == ""


def test_nearest_gives_the_name_as_it_is_known():
    assert nearest("agc", ["AGC", "norm"]) == " Did you mean 'AGC'?"
