"""Text as words: many scripts, names of files, misspellings."""

from __future__ import annotations

import random
import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ragllava.words import (
    MAX_CHARACTERS,
    distance,
    is_correctable,
    is_slip,
    may_be_misspelt,
    names_in,
    source_words,
    variants,
    words_of,
)

# Without surrogates, which no text in a database has, and unassigned characters.
TEXT = st.text(st.characters(exclude_categories=("Cs", "Cn")))


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("Undwick Barn, Upper Holshire, 1968", ["undwick", "barn", "upper", "holshire", "1968"]),
        ("the The THE", ["the", "the", "the"]),
        ("Müller-Straße MÜLLER", ["muller", "strasse", "muller"]),
        (
            "Łódź Ærø Œuvre Þór Ðakovo ISTANBUL ıstanbul İstanbul",
            ["lodz", "aero", "oeuvre", "thor", "dakovo"] + ["istanbul"] * 3,
        ),
        ("Ёлка й Київ", ["елка", "и", "киів"]),
        ("Ὀδυσσεύς ΟΔΥΣΣΕΥΣ", ["οδυσσευσ", "οδυσσευσ"]),
        ("St Mary's, the boys' school of the 1960’s", ["st", "mary", "the", "boys", "school", "of", "the", "1960"]),
        ("O'Neill O’Neill Hawaiʻi п'ять", ["oneill", "oneill", "hawaii", "пять"]),
        ("Musée d'Orsay, L’Aquila, dell'Arte", ["musee", "d", "orsay", "l", "aquila", "dell", "arte"]),
        ("'quoted' ''", ["quoted"]),
        ("1932 1,000 3.5 No. 7b", ["1932", "1", "000", "3", "5", "no", "7b"]),
        ("١٩٣٢ ۱۹۳۲ １９３２ १९३२", ["1932"] * 4),
        ("東京タワー", ["東京", "京タ", "タワ", "ワー"]),
        ("1932年の東京tower", ["1932", "年の", "の東", "東京", "tower"]),
        ("山 が", ["山", "が"]),
        ("ﾊﾞﾅﾅ バナナ", ["バナ", "ナナ"] * 2),
        ("서울 한강", ["서울", "한강"]),
        ("กรุงเทพ", ["กร", "รุ", "ุง", "งเ", "เท", "ทพ"]),
        ("ວຽງຈັນ", ["ວຽ", "ຽງ", "ງຈ", "ຈັ", "ັນ"]),
        ("ភ្នំ", ["ភ្", "្ន", "នំ"]),
        ("ရန်ကုန်", ["ရန", "န်", "်က", "ကု", "ုန", "န်"]),
        ("हिन्दी भाषा தமிழ்", ["हिन्दी", "भाषा", "தமிழ்"]),
        ("مُحَمَّد أحمد محـــمد", ["محمد", "احمد", "محمد"]),
        ("שָׁלוֹם", ["שלום"]),
        ("Harlow™ ½ m² ﬁn", ["harlow", "1", "2", "m2", "fin"]),
        ("snake_case a-b a/b a\tb\nc\u00a0d\u200be", ["snake", "case", "a", "b", "a", "b", "a", "b", "c", "d", "e"]),
        ("soft\u00adhyphen zero\u200dwidth", ["softhyphen", "zerowidth"]),
        ("❤️ 5️⃣ 👩‍🚀 — … !", ["5"]),
        ("", []),
    ],
)
def test_words_of_many_scripts(text: str, words: list[str]) -> None:
    assert words_of(text) == words


@given(TEXT)
def test_both_normal_forms_give_the_same_words(text: str) -> None:
    composed, decomposed = (words_of(unicodedata.normalize(form, text)) for form in ("NFC", "NFD"))
    assert composed == decomposed


LETTERS = st.sampled_from("aßéøŁœĐþñçåžőΩσςάЖйёабвгдეაԱա'’ -.1ﬁǅŉ")


@given(st.text(LETTERS))
def test_case_does_not_matter(text: str) -> None:
    assert words_of(text.upper()) == words_of(text.lower()) == words_of(text)


@given(TEXT)
def test_words_are_letters_marks_and_digits_of_limited_length(text: str) -> None:
    for word in words_of(text) + source_words(text):
        assert 0 < len(word) <= MAX_CHARACTERS
        assert all(unicodedata.category(character)[0] in "LMN" for character in word)
        assert any(map(str.isalnum, word)) or len(word) <= 2  # a pair may begin with a vowel sign


@given(TEXT, TEXT)
def test_words_of_two_lines_are_those_of_each(first: str, second: str) -> None:
    assert words_of(f"{first}\n{second}") == words_of(first) + words_of(second)


def test_a_long_word_is_cut() -> None:
    assert words_of("x" * 100_000) == ["x" * 64]


@pytest.mark.parametrize(
    ("source", "words"),
    [
        ("Coast/IMG_0412-HarlowTower1932.jpg", ["coast", "img", "0412", "harlow", "tower", "1932"]),
        ("photos.zip/a/DSC0001.JPG", ["photos", "a", "dsc", "0001"]),
        ("XMLFile2b.webp", ["xml", "file", "2", "b"]),
        ("C:\\Pictures\\Mary's barn.png", ["c", "pictures", "mary", "barn"]),
        ("St. Mary/no extension", ["st", "mary", "no", "extension"]),
        ("ŁódźKościół.png", ["lodz", "kosciol"]),
        (unicodedata.normalize("NFD", "MüllerÉcole.png"), ["muller", "ecole"]),
        ("東京タワー1932.png", ["東京", "京タ", "タワ", "ワー", "1932"]),
        (".png", []),
        ("", []),
    ],
)
def test_words_of_names_of_files(source: str, words: list[str]) -> None:
    assert source_words(source) == words


class TestMisspellings:
    def test_variants(self) -> None:
        assert variants("barn") == ["barn", "arn", "brn", "ban", "bar"]
        assert variants("aaaa") == ["aaaa", "aaa"]
        assert [variants(word) for word in ("bar", "1932", "ab12", "東京", "서울서울")] == [[]] * 5

    def test_words_at_distance_one_share_a_variant(self) -> None:
        rng = random.Random(4)
        letters = "abcdeüж"
        for _ in range(2_000):
            word = "".join(rng.choices(letters, k=rng.randint(5, 9)))
            place, letter = rng.randrange(len(word) - 1), rng.choice(letters)
            misspelt = rng.choice(
                [
                    word[:place] + word[place + 1 :],
                    word[:place] + letter + word[place:],
                    word[:place] + letter + word[place + 1 :],
                    word[:place] + word[place + 1] + word[place] + word[place + 2 :],
                ]
            )
            assert distance(word, misspelt) == distance(misspelt, word) == (word != misspelt)
            assert set(variants(word)) & set(variants(misspelt))

    @pytest.mark.parametrize(
        ("first", "second", "far"),
        [("undwick", "undwick", 0), ("undwick", "udnwick", 1), ("kitten", "sitting", 3), ("abc", "", 3), ("", "ab", 2)],
    )
    def test_distance(self, first: str, second: str, far: int) -> None:
        assert distance(first, second) == far

    def test_which_words_of_a_question_may_be_misspelt(self) -> None:
        assert may_be_misspelt("What colour has the gazebo of “Undwik Barn” in Holshrie?") == {"undwik", "holshrie"}
        assert may_be_misspelt("what colour has the gazebo of undwik barn") == {"gazebo", "undwik"}
        assert may_be_misspelt("Where is undwik barn?") == {"undwik"}, "the capital of a sentence marks no name"
        assert may_be_misspelt("WHERE IS UNDWIK BARN IN 19322?") == {"undwik"}
        assert not any(map(is_correctable, ["barn", "19322", "color", "which", "東京タワー"]))

    def test_names_tell_what_a_question_is_about(self) -> None:
        question = "What is in the Undwick Barn of Rome near the Church in winter 1932?"
        assert names_in(question) == {"undwick", "barn", "rome", "church"}
        assert names_in("what is in undwick barn of rome in winter 1932?") == {"undwick", "winter"}

    @pytest.mark.parametrize("word", ["undwikc", "unwdick", "undick", "undwwick", "undwack"])
    def test_slips(self, word: str) -> None:
        assert is_slip(word, "undwick")

    @pytest.mark.parametrize(
        ("word", "other"),
        [
            ("schiffe", "schiff"),
            ("marie", "maria"),
            ("austrian", "austria"),
            ("nudwick", "undwick"),
            ("undwick", "undwick"),
            ("udwcick", "undwick"),
        ],
    )
    def test_forms_of_a_word_and_other_words_are_no_slips(self, word: str, other: str) -> None:
        assert not is_slip(word, other)
        assert not is_slip(other, word)
