"""Text as words that can be searched: the same for a caption and for a question, in any language.

A word is without case and accents, so that "MÜLLER", "Müller" and "müller" (in either normal form) are one word. Where
a script has no spaces between its words, each pair of adjacent characters is a word. A word holds only letters, marks
and digits: anything else is free for words that no text can have.
"""

from __future__ import annotations

import re
import unicodedata

# Of the rules of this file. Raise it with every change that gives other words: then the words of archives are written
# again (stores/archives/texts.py).
WORDS_VERSION = 1

MAX_CHARACTERS = 64  # of a word; the rest of a longer one is dropped

# Letters that do not decompose into a letter and an accent; ß is ss already, by case folding.
_LETTERS = {
    "ø": "o", "ł": "l", "æ": "ae", "œ": "oe", "đ": "d", "ð": "d", "þ": "th", "ı": "i", "ħ": "h", "ŧ": "t",
}  # fmt: skip
_APOSTROPHES = "'\u2019\u2018\u02bc\u02bb`"
# Characters whose compatible form would be a part of the word before them, or a space in place of an apostrophe.
_BEFORE_FOLDING = str.maketrans({"\u2122": " ", "\u2120": " ", "\u00b4": "'"})

# Marks that people leave out when they type: accents of Latin, Greek and Cyrillic, points of Hebrew and Arabic. Those
# of other scripts are vowels, or make another letter, as the voiced sounds of Japanese.
_ACCENTS = ((0x0300, 0x036F), (0x0591, 0x05C7), (0x0610, 0x061A), (0x064B, 0x065F), (0x0670, 0x0670))
_IGNORED = ((0x0640, 0x0640), (0x20D0, 0x20FF), (0xFE00, 0xFE0F), (0xE0100, 0xE01EF))  # tatweel, marks of symbols
_SPACE_OF_NO_WIDTH = 0x200B  # separates words of scripts without spaces

# Han, Hiragana, Katakana, Bopomofo, Hangul, Thai, Lao, Khmer, Myanmar.
_UNSPACED = (
    "\u0e00-\u0eff\u1000-\u109f\u1100-\u11ff\u1780-\u17ff\u3005-\u3007\u3021-\u3035\u3040-\u312f\u31a0-\u31bf"
    "\u31f0-\u31ff\u3400-\u4dbf\u4e00-\u9fff\ua960-\ua97f\ua9e0-\ua9ff\uaa60-\uaa7f\uac00-\ud7ff\uf900-\ufaff"
    "\U0001aff0-\U0001b16f\U00020000-\U000323af"
)
_HAS_UNSPACED = re.compile(f"[{_UNSPACED}]")
_RUNS = re.compile(f"[{_UNSPACED}]+|[^{_UNSPACED}]+")

_POSSESSIVE = re.compile(r"(?<=\w)'s(?!\w)")
_ELISION = re.compile(r"\b(l|d|dell|dall|nell|sull|all)'(?=\w)")  # French, Italian: "d'Orsay", "dell'Arte"
_APOSTROPHE = re.compile(r"(?<=\w)'(?=\w)")

_EXTENSION = re.compile(r"\.[^./\\\s]{1,5}$")
_CONTAINER = re.compile(r"\.(?:zip|tar|tgz|tar\.gz)(?=[/\\])", re.IGNORECASE)


_SHORTEST_WITH_VARIANTS = 4
_SHORTEST_CORRECTED = 5
_SHORTEST_NAME = 4
_OPENING = "\"'([{\u00ab\u00bf\u00a1\u2018\u201c\u201e"

# English words of five letters or more that ask and describe. An archive of names has one of similar spelling for many
# of them, and that is not what they mean.
_ENGLISH = """
    about above across after again along always among animal animals another appear appears around because before
    behind being below beneath beside between beyond bigger black bottom bright brown building buildings captured
    center centre child children clearly color colored colors colour coloured colours compare compared contain
    contains corner could count decade depicted describe different display displayed during either entire every
    facade facing fewer first found front girls glass golden great greater green higher house houses identify image
    images inside kinds large larger largest least leftmost length light located location longer lower material
    metal middle might nearby neither night number object objects older orange other others outside painted pattern
    people person photo photograph photographs photos picture pictured pictures place placed point pointed postcard
    postcards purple question right rightmost round scene second shape shaped shapes should shown shows silver
    similar since small smaller smallest something sport square stand standing still stone street structure
    structures style sunny sunrise sunset surface taken taller tallest their there these thing things third those
    three through toward towards trees under until visible wearing weather where whether which while white whole
    whose window windows within without woman women wooden would years yellow
"""
_QUESTION_WORDS = frozenset(_ENGLISH.split())


class _Characters(dict[int, str | None]):
    """What each character becomes, for `str.translate`; found when it is first met."""

    def __missing__(self, code: int) -> str | None:
        self[code] = replacement = _character(code)
        return replacement


def _character(code: int) -> str | None:
    """The character itself, another one, a space (it separates words) or None (it is left out)."""
    character = chr(code)
    if any(first <= code <= last for first, last in (*_ACCENTS, *_IGNORED)):
        return None
    kind = unicodedata.category(character)
    if kind == "Nd":
        return str(unicodedata.decimal(character))
    if kind[0] in "LMN":
        return _LETTERS.get(character, character)
    return None if kind == "Cf" and code != _SPACE_OF_NO_WIDTH else " "


_CHARACTERS = _Characters(dict.fromkeys(map(ord, _APOSTROPHES), "'"))


def words_of(text: str) -> list[str]:
    """The words of a text, in its order and with repetitions.

    "St Mary's Müller-Straße 12" gives st, mary, muller, strasse, 12. A possessive ending is dropped, an apostrophe
    inside a word is left out, and the article of "d'Orsay" is a word of its own.
    """
    folded = unicodedata.normalize("NFKD", text.translate(_BEFORE_FOLDING)).casefold()
    plain = unicodedata.normalize("NFKD", folded).translate(_CHARACTERS)
    if "'" in plain:
        plain = _APOSTROPHE.sub("", _ELISION.sub(r"\1 ", _POSSESSIVE.sub("", plain))).replace("'", " ")
    if plain.isascii():
        return [word[:MAX_CHARACTERS] for word in plain.split()]
    # Composed again, so that a letter with a mark is one character.
    words: list[str] = []
    for token in unicodedata.normalize("NFC", plain).split():
        for run in _RUNS.findall(token):
            words += _pairs(run) if _HAS_UNSPACED.match(run) else _word(run)
    return words


def _pairs(run: str) -> list[str]:
    return [run[start : start + 2] for start in range(max(1, len(run) - 1))]


def _word(token: str) -> list[str]:
    """The word as a list; an empty one for marks without a letter."""
    return [token[:MAX_CHARACTERS]] if any(map(str.isalnum, token)) else []


def source_words(source: str) -> list[str]:
    """The words of the name of a file and its folders, without its extension.

    "Coast/IMG_0412-HarlowTower1932.jpg" gives coast, img, 0412, harlow, tower, 1932.
    """
    name = _CONTAINER.sub("", _EXTENSION.sub("", unicodedata.normalize("NFC", source)))
    parts: list[str] = []
    for before, character, after in zip(" " + name, name, name[1:] + " ", strict=False):
        if _begins_word(before, character, after):
            parts.append(" ")
        parts.append(character)
    return words_of("".join(parts))


def _begins_word(before: str, character: str, after: str) -> bool:
    """Whether a word of a name such as `XMLFile2` begins here: at F and at 2."""
    if character.isupper():
        return before.islower() or before.isdigit() or (before.isupper() and after.islower())
    if character.isdigit():
        return before.isalpha()
    return character.isalpha() and before.isdigit()


def variants(word: str) -> list[str]:
    """The word, and what is left of it without one of its characters, each once.

    Two words share a variant if one becomes the other by one inserted, missing, wrong or exchanged character. No
    variants, if a misspelling could not be told from another word: of fewer than four characters, with a digit, or of
    a script whose words are pairs of characters.
    """
    if len(word) < _SHORTEST_WITH_VARIANTS or any(map(str.isdigit, word)) or _HAS_UNSPACED.search(word):
        return []
    return list(dict.fromkeys([word, *(word[:gap] + word[gap + 1 :] for gap in range(len(word)))]))


def may_be_misspelt(text: str) -> set[str]:
    """The words of a question that are worth a correction where an archive does not have them: names, above all.

    Where capitals mark names, only words with a capital; else all. Never short ones, numbers, and words that questions
    are made of.
    """
    tokens = text.split()
    capitalised = [token for token in tokens if token.lstrip(_OPENING)[:1].isupper()]
    words = words_of(text if capitalised in ([], tokens[:1]) else " ".join(capitalised))
    return {word for word in words if is_correctable(word)}


def names_in(text: str) -> set[str]:
    """The words of a question that name something, so that they tell what it is about.

    `may_be_misspelt`, and shorter words with a capital inside the text. Never numbers: a year says little.
    """
    capitalised = [token for token in text.split()[1:] if token.lstrip(_OPENING)[:1].isupper()]
    shorter = {word for word in words_of(" ".join(capitalised)) if len(word) >= _SHORTEST_NAME}
    return may_be_misspelt(text) | {word for word in shorter - _QUESTION_WORDS if not any(map(str.isdigit, word))}


def is_correctable(word: str) -> bool:
    """Whether the word may be a misspelling of another."""
    return len(word) >= _SHORTEST_CORRECTED and word not in _QUESTION_WORDS and bool(variants(word))


def is_slip(word: str, meant: str) -> bool:
    """Whether the word is another one with one typing error in it, and not a form of it, such as its plural.

    They begin and end with the same character, or have two adjacent ones exchanged.
    """
    ends_alike = word[-1:] == meant[-1:] or sorted(word) == sorted(meant)
    return word[:1] == meant[:1] and ends_alike and distance(word, meant) == 1


def distance(first: str, second: str) -> int:
    """How many inserted, missing, wrong or exchanged adjacent characters the words differ by (Damerau-Levenshtein)."""
    before: list[int] = []
    above = list(range(len(second) + 1))
    for row, character in enumerate(first, start=1):
        line = [row]
        for column, opposite in enumerate(second, start=1):
            least = min(above[column] + 1, line[-1] + 1, above[column - 1] + (character != opposite))
            if row > 1 < column and character == second[column - 2] and opposite == first[row - 2]:
                least = min(least, before[column - 2] + 1)
            line.append(least)
        before, above = above, line
    return above[-1]
