"""Captions beyond what CLIP reads are counted, and so are the images that only their ends told apart."""

import pytest

from leanrecon.features.clip.cut import look_for_cut


def words(texts):
    """A token a word, between those of beginning and end."""
    return [[0, *(hash(word) for word in text.split()), 1] for text in texts]


def look(captions, positions=7):
    return look_for_cut(captions, positions, words)


LONG = "one two three four five"  # five words fill seven positions


def test_captions_that_fit_are_not_counted():
    found = look([[LONG], ["a"], [LONG, "b"]])
    assert (found.captions, found.cut, found.images, found.alike) == (4, 0, 3, 0)
    assert found.sentence(7) == ""


def test_images_whose_captions_differ_after_the_cut_alone_are_counted():
    found = look([[LONG + " six"], [LONG + " seven"], ["a nice long caption of another image"], ["a"]])
    assert (found.cut, found.alike) == (3, 2)
    assert "3 of 4 captions are longer than the 7 tokens" in found.sentence(7)
    assert "2 of 4 images" in found.sentence(7)


def test_a_caption_that_is_the_beginning_of_another_is_like_it():
    assert look([[LONG], [LONG + " six"]]).alike == 2


def test_images_of_one_caption_are_alike_without_the_cut():
    assert look([[LONG + " six"], [LONG + " six"]]).alike == 0


def test_other_captions_of_an_image_tell_it_apart():
    assert look([[LONG + " six", "a cat"], [LONG + " seven", "a dog"]]).alike == 0


@pytest.mark.parametrize("n", [255, 256, 257, 1000])
def test_any_number_of_captions_is_counted(n):
    found = look([[f"{LONG} {k}"] for k in range(n)])
    assert (found.cut, found.alike) == (n, n)
