import pytest

from rebase.generation.filters.languages import LanguageFilter, _identifier, detect_language, task_language
from rebase.records import LANGUAGES
from tests.generation.filters.rows import row

ENGLISH = "The ferry to the island leaves at nine and returns before the harbor closes."
GERMAN = "Die Fähre zur Insel fährt um neun Uhr ab und kehrt zurück, bevor der Hafen schließt."
SLOVENE = "Trajekt na otok odpelje ob devetih in se vrne, preden se pristanišče zapre."
HINDI = "द्वीप के लिए नौका नौ बजे निकलती है और बंदरगाह बंद होने से पहले लौट आती है।"
JAPANESE = "島へのフェリーは九時に出発し、港が閉まる前に戻ってくる。"


@pytest.mark.parametrize(
    ("text", "language"),
    [(ENGLISH, "en"), (GERMAN, "de"), (SLOVENE, "sl"), (HINDI, "hi"), (JAPANESE, "ja")],
    ids=["en", "de", "sl", "hi", "ja"],
)
def test_prose_has_a_language(text, language):
    assert detect_language(text) == language


def test_a_task_can_name_the_languages_that_are_told_apart():
    assert {*LANGUAGES.split(), "zxx"} == set(_identifier().nb_classes)


@pytest.mark.parametrize(
    "text",
    ["", "Yes", "Hans Müller", "entailment", "not ( True ) and ( False )", "17 + 4 * 3 = 29", "a<>is<>b$$$c<>has<>d",
     "fe353b09bbfb15cf5ad9242045be556c66f2db1c", "https://example.org/a/b?c=d&e=f", "[[1, 2], [3, 4]]"],
)  # fmt: skip
def test_what_is_no_prose_has_none(text):
    assert detect_language(text) is None


def test_a_text_in_another_language_is_rejected_and_its_language_named(reading_task):
    rejection = LanguageFilter(reading_task).reject("nli", SLOVENE)
    assert (rejection.reason, rejection.detail) == ("language", "sl")


@pytest.mark.parametrize("text", [ENGLISH, "17 + 4", ""])
def test_other_texts_pass(text, reading_task):
    assert LanguageFilter(reading_task).reject("nli", text) is None


def test_an_unclear_text_has_the_language_of_most_rows_of_its_config(reading_task):
    languages = LanguageFilter(reading_task)
    assert languages.reject("nli", "Ja.") is None
    for text in (SLOVENE, ENGLISH, SLOVENE.upper()):
        languages.reject("nli", text)
    assert languages.reject("nli", "Ja.").detail == "sl"
    assert languages.reject("another", "Ja.") is None
    assert languages.reject("nli", ENGLISH) is None


def test_a_field_of_names_and_titles_has_no_language(reading_task):
    languages = LanguageFilter(reading_task)
    assert languages.reject_field("title", "Die Kunst der Fuge und das wohltemperierte Klavier").detail == "de"
    assert [languages.reject_field("title", title) for title in ("Dune", "Emma", "Moby Dick")][1:] == [None, None]
    assert languages.reject_field("choices", "(A) natrium chloratum\n(B) kalium nitricum et alia rara") is None


def test_a_short_text_has_the_language_of_its_field_if_most_texts_are_clear(reading_task):
    languages = LanguageFilter(reading_task)
    assert [languages.reject_field("hypothesis", text).detail for text in (GERMAN, GERMAN, "Ja.")] == ["de"] * 3
    assert languages.reject_field("premise", "Ja.") is None
    any_language = reading_task.model_copy(update={"language": "any"})
    assert LanguageFilter(any_language).reject_field("hypothesis", GERMAN) is None


def test_the_configs_of_a_dataset_may_have_different_languages(reading_task):
    languages = LanguageFilter(reading_task)
    slovene, english = row(SLOVENE, "nli/sl/train/0"), row(ENGLISH, "nli/en/train/0")
    languages.reject(slovene.config, SLOVENE)
    assert languages.reject(slovene.config, "Ja.").detail == "sl"
    assert languages.reject(english.config, "Ja.") is None


def test_a_text_in_capitals_has_the_language_of_its_words():
    assert detect_language(SLOVENE.upper()) == "sl"


def test_a_task_has_the_language_of_its_examples_unless_its_file_names_one(reading_task):
    assert task_language(reading_task) == "en"
    assert task_language(reading_task.model_copy(update={"language": "sl"})) == "sl"
    assert task_language(reading_task.model_copy(update={"language": "any"})) is None
