"""What a postcard shows and what its caption says: two halves of a landmark that share only its kind.

Attributes appear only in the picture and names only in the caption, so a search for a landmark must read both. Words
are split in two by their MD5: training draws names from one part and archives for measurements from the other, so a
model is never measured on a name that it was trained on.

All randomness comes from a `random.Random`. The order of its calls must not change: the shipped mini models learned
exactly this distribution, and a seed gives the same archive on every machine.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

Split = Literal["train", "test"]

# The shipped models are trained on KINDS (in-domain) and have never seen SHIFTED_KINDS.
KINDS = (
    "tower", "lighthouse", "windmill", "castle", "barn", "dome",
    "ship", "temple", "bridge", "pyramid", "arch", "fountain",
)  # fmt: skip
SHIFTED_KINDS = ("igloo", "obelisk", "pagoda", "stadium", "cottage", "silo")
ROOFED_KINDS = frozenset({"tower", "lighthouse", "windmill", "castle", "barn", "cottage", "silo"})
# The others count windows.
FLAGGED_KINDS = frozenset({"temple", "bridge", "pyramid", "arch", "fountain", "igloo", "obelisk"})
COLORS = ("red", "orange", "yellow", "green", "blue", "purple", "white", "black")
SKIES = ("day", "night", "sunset")
ROOFS = ("flat", "pointed", "round", "stepped")
COMPANIONS = ("tree", "boat", "car", "dog", "lamp")
NOTHING = "none"  # no roof, no companion
MAX_COUNT = 6

FIRST_YEAR, LAST_YEAR = 1900, 1979

_FIRST_SYLLABLES = (
    "Har Den Wex Kel Mor Bran Thor Ash Lin Cald Vel Ros Fen Gar Dun Hol Mar Nor Pel Quin Rav Sel Tam Ul Var Wil "
    "Yar Zan Bel Cor Dra El Fal Gren Hav Is Jor Kar Lum Mel Nev Os Per Rud Sor Tor Und Ves Wen Yel"
)
_LAST_SYLLABLES = (
    "low by moor ton ford wick dale mere field ham stead worth bury gate crest holm vale mont ville shire ley port "
    "ridge brook haven cliff den well more land"
)
_CITY_PREFIXES = ("", "", "", "Port ", "New ", "Saint ", "Upper ")
_CONSONANTS = "bcdfghjklmnprstvz"
_VOWELS = "aeiou"
_ARBITRARY_WORD_SHARE = 0.15  # of training words, so that matching names does not lean on the syllables


def belongs_to_test(word: str) -> bool:
    """Whether a two-syllable word is kept out of training: one word in five, always the same ones."""
    digest = hashlib.md5(word.encode(), usedforsecurity=False).hexdigest()
    return int(digest, 16) % 5 == 0


_ALL_WORDS = [first + last for first in _FIRST_SYLLABLES.split() for last in _LAST_SYLLABLES.split()]
TRAIN_WORDS = tuple(word for word in _ALL_WORDS if not belongs_to_test(word))
TEST_WORDS = tuple(word for word in _ALL_WORDS if belongs_to_test(word))


@dataclass(frozen=True, slots=True)
class Attributes:
    """What only the picture shows. `count` is the number of windows or flags, 1 to 6."""

    kind: str
    color: str
    count: int
    sky: str
    roof: str
    beside: str

    @property
    def counted(self) -> str:
        """The word for what `count` counts."""
        return "flags" if self.kind in FLAGGED_KINDS else "windows"


@dataclass(frozen=True, slots=True)
class Entity:
    """What only the caption says. If `caption_names_kind` is false, only the picture shows the kind."""

    name: str
    city: str
    year: int
    caption_names_kind: bool


@dataclass(frozen=True, slots=True)
class Landmark:
    """The subject of a postcard: its appearance and its name."""

    attributes: Attributes
    entity: Entity

    @property
    def title(self) -> str:
        """Name and kind, "Harlow Lighthouse"."""
        return f"{self.entity.name} {self.attributes.kind.capitalize()}"

    @property
    def identity(self) -> tuple[str, str, str]:
        """(kind, name, city): what a question names. No two landmarks of an archive share it."""
        return self.attributes.kind, self.entity.name, self.entity.city

    @property
    def caption(self) -> str:
        """The printed caption: "Harlow Lighthouse, Port Ansel, 1932", or without the kind."""
        name = self.title if self.entity.caption_names_kind else self.entity.name
        return f"{name}, {self.entity.city}, {self.entity.year}"


def sample_attributes(rng: random.Random, kind: str | None = None, kinds: Sequence[str] = KINDS) -> Attributes:
    """Attributes drawn uniformly, of a given kind or of any of `kinds`."""
    kind = rng.choice(kinds) if kind is None else kind
    return Attributes(
        kind=kind,
        color=rng.choice(COLORS),
        count=rng.randint(1, MAX_COUNT),
        sky=rng.choice(SKIES),
        roof=rng.choice(ROOFS) if kind in ROOFED_KINDS else NOTHING,
        beside=rng.choice((*COMPANIONS, NOTHING)),
    )


def sample_entity(rng: random.Random, split: Split) -> Entity:
    """A name, a city and a year, independent of any picture."""
    return Entity(
        name=_word(rng, split),
        city=_city(rng, split),
        year=_year(rng),
        caption_names_kind=rng.random() < 0.7,
    )


def confusable_entity(entity: Entity, rng: random.Random, split: Split) -> Entity:
    """An entity with a similar caption: another name, another city, a similar name, or another name and city."""
    form = rng.random()
    year, caption_names_kind = _year(rng), rng.random() < 0.7
    name, city = entity.name, entity.city
    if form < 0.3:
        name = _word(rng, split)
    elif form < 0.6:
        city = _city(rng, split)
    elif form < 0.75:
        name = _similar_word(entity.name, rng, split)
        if rng.random() < 0.5:
            city = _city(rng, split)
    else:
        name, city = _word(rng, split), _city(rng, split)
    if (name, city) == (entity.name, entity.city):
        name = _word(rng, split) + "s"
    return Entity(name, city, year, caption_names_kind)


def similar_entity(entity: Entity, rng: random.Random, split: Split) -> Entity:
    """An entity whose name, or the last word of whose city, is another word with the same first three letters.

    Any other word where there is none.
    """
    name, city = entity.name, entity.city
    if rng.random() < 0.5:
        name = _word_like(name, rng, split)
    else:
        before, space, word = city.rpartition(" ")
        city = before + space + _word_like(word, rng, split)
    return Entity(name, city, _year(rng), rng.random() < 0.7)


def namesake_entity(entity: Entity, rng: random.Random) -> Entity:
    """The same name and city for a landmark of another kind. Most of these captions leave the kind out."""
    return replace(entity, caption_names_kind=rng.random() < 0.35, year=_year(rng))


def _word(rng: random.Random, split: Split) -> str:
    if split == "test":
        return rng.choice(TEST_WORDS)
    if rng.random() < _ARBITRARY_WORD_SHARE:
        return _arbitrary_word(rng)
    return rng.choice(TRAIN_WORDS)


def _arbitrary_word(rng: random.Random) -> str:
    """A pronounceable word such as "Vohefan". It never has two consonants in a row; every listed word has."""
    syllables = [rng.choice(_CONSONANTS) + rng.choice(_VOWELS) for _ in range(rng.randint(2, 3))]
    return "".join(syllables).capitalize() + rng.choice(("", "n", "s", "r", "l"))


def _similar_word(word: str, rng: random.Random, split: Split) -> str:
    """A word with the same first three letters; after twenty tries, any word."""
    for _ in range(20):
        drawn = _word(rng, split)
        if drawn[:3] == word[:3] and drawn != word:
            break
    return drawn


def _word_like(word: str, rng: random.Random, split: Split) -> str:
    """As `_similar_word`, but with the same first three letters wherever there is such a word."""
    words = TRAIN_WORDS if split == "train" else TEST_WORDS
    similar = [candidate for candidate in words if candidate[:3] == word[:3] and candidate != word]
    return rng.choice(similar) if similar else _word(rng, split)


def _city(rng: random.Random, split: Split) -> str:
    return rng.choice(_CITY_PREFIXES) + _word(rng, split)


def _year(rng: random.Random) -> int:
    return rng.randint(FIRST_YEAR, LAST_YEAR)
