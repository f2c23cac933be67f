"""Which caption belongs to which file, by their names.

Two names fit if one of them is the end of the other, by whole parts of the path: `boats/blue.jpg` fits `blue.jpg` and
`/srv/ada/boats/blue.jpg`, and never `cars/blue.jpg`. Of several files that a name fits, it belongs to the one that has
exactly this name, else to the one with which it shares the most parts of the whole path; if there are two of them, to
none. Where a caption's name has folders above those of the file's name, these are compared with the folders that the
file lies in: if some captions agree with them (`2019/a.jpg` for a file of the folder `2019`), those that agree less
(`2020/b.jpg`) are of other folders.

Names that fit letter for letter are matched first, then without regard to the form of Unicode, to case, to
percent-encoding, and to an extension that the caption's name lacks.
"""

from __future__ import annotations

import posixpath
import re
import unicodedata
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from urllib.parse import unquote

_PAGE = re.compile(r"(.+)#page=([1-9]\d{0,8})", re.DOTALL)
_EXTENSION = re.compile(r"\.(?:[a-z]{3,4}|jp2|j2k)")


def split_page(name: str) -> tuple[str, int]:
    """The name of the document and the number of the page that a name stands for; 0 for one that names no page."""
    page = _PAGE.fullmatch(name)
    return (page[1], int(page[2])) if page else (name, 0)


def name_group(name: str) -> str:
    """What all names have in common that may fit each other: the last part, folded, without an extension.

    A page has that of its document.
    """
    last = posixpath.basename(_decoded(split_page(name)[0]))
    stem, extension = posixpath.splitext(last)
    return stem if stem and _EXTENSION.fullmatch(extension) else last


@dataclass(frozen=True, slots=True)
class FileName:
    """A file that is offered: the name that people see, and its whole path, which ends in that name."""

    source: str
    path: str


@dataclass(slots=True)
class Matches:
    """By the number of a file, the number of its caption; and the captions that fit several files equally well."""

    captions: dict[int, int] = field(default_factory=dict)
    ambiguous: set[int] = field(default_factory=set)

    @property
    def taken(self) -> set[int]:
        """The captions that belong to a file."""
        return set(self.captions.values())


def match_names(captions: Sequence[str], files: Sequence[FileName]) -> Matches:
    """Match the names of captions to files; all names are spelled as `picture_name` spells them.

    Each caption belongs to at most one path, and each file has at most one caption.
    """
    matches = Matches(_equal_names(captions, files))
    folders = [file.path.removesuffix(file.source) for file in files]
    most: dict[str, int] = defaultdict(int)
    for spell_caption, spell_file in _SPELLINGS:
        done = {*matches.captions.values(), *matches.ambiguous}
        names = {number: spell_caption(name) for number, name in enumerate(captions) if number not in done}
        if not names:
            break
        open_files = {
            number: FileName(spell_file(file.source), spell_file(file.path))
            for number, file in enumerate(files)
            if number not in matches.captions
        }
        candidates = _of_their_folders(_candidates(names, open_files), names, open_files, folders, most)
        _choose(candidates, names, open_files, matches)
    return matches


def _equal_names(captions: Sequence[str], files: Sequence[FileName]) -> dict[int, int]:
    """By the number of a file, that of the caption of exactly its name; without those that several paths share."""
    numbers = {name: number for number, name in enumerate(captions)}
    paths: dict[str, set[str]] = defaultdict(set)
    for file in files:
        paths[file.source].add(file.path)
    return {
        number: numbers[file.source]
        for number, file in enumerate(files)
        if file.source in numbers and len(paths[file.source]) == 1
    }


def _choose(
    candidates: dict[int, list[int]], names: dict[int, str], files: dict[int, FileName], matches: Matches
) -> None:
    """Choose the file of each name among its candidates, the longest names first: what they take is not free for
    others."""
    by_length: dict[tuple[bool, int], list[int]] = defaultdict(list)
    for number, fitting in candidates.items():
        is_exact = any(files[file].source == names[number] for file in fitting)
        by_length[is_exact, names[number].count("/")].append(number)
    for _, numbers in sorted(by_length.items(), reverse=True):
        chosen: dict[int, list[int]] = defaultdict(list)
        for number in numbers:
            fitting = [file for file in candidates[number] if file not in matches.captions]
            best = _best(fitting, lambda file, name=names[number]: _closeness(name, files[file]))  # type: ignore[misc]
            if len({files[file].path for file in best}) > 1:
                matches.ambiguous.add(number)
                continue
            for file in best:
                chosen[file].append(number)
        for file, rivals in chosen.items():
            best = _best(rivals, lambda number, file=file: _closeness(names[number], files[file]))  # type: ignore[misc]
            if len(best) == 1:
                matches.captions[file] = best[0]
            else:
                matches.ambiguous.update(best)


def _candidates(names: dict[int, str], files: dict[int, FileName]) -> dict[int, list[int]]:
    """By the number of a name, the files that it fits."""
    by_name, by_source = _grouped(names.items()), _grouped((number, file.source) for number, file in files.items())
    candidates: dict[int, list[int]] = defaultdict(list)
    for source, numbers in by_source.items():
        for end in _ends(source):
            for name in by_name.get(end, ()):
                candidates[name] += numbers
    for spelled, numbers in by_name.items():
        for end in _ends(spelled):
            if end != spelled:
                for number in numbers:
                    candidates[number] += by_source.get(end, ())
    return candidates


def _of_their_folders(
    candidates: dict[int, list[int]],
    names: dict[int, str],
    files: dict[int, FileName],
    folders: Sequence[str],
    most: dict[str, int],
) -> dict[int, list[int]]:
    """The candidates without names whose upper folders agree less with those of a file than other names' do.

    `folders` has the folders above each file's name; `most` is updated: by these, the most that a name agreed.
    """

    def agreement(number: int, file: FileName) -> int | None:
        """How many folders above the file's name the other name has, too; None: it has no more parts."""
        own = file.source.count("/") + 1
        return _closeness(names[number], file)[1] - own if names[number].count("/") >= own else None

    agreements = {
        (number, file): agreement(number, files[file]) for number, fitting in candidates.items() for file in fitting
    }
    for (_, file), shared in agreements.items():
        most[folders[file]] = max(most[folders[file]], shared or 0)
    return {
        number: [file for file in fitting if agreements[number, file] in (None, most[folders[file]])]
        for number, fitting in candidates.items()
    }


def _grouped(named: Iterable[tuple[int, str]]) -> dict[str, list[int]]:
    groups: dict[str, list[int]] = defaultdict(list)
    for number, name in named:
        groups[name].append(number)
    return groups


def _ends(name: str) -> Iterator[str]:
    """The name without its first parts: `a/b/c`, `b/c`, `c`."""
    yield name
    while "/" in name:
        name = name.partition("/")[2]
        yield name


def _closeness(name: str, file: FileName) -> tuple[bool, int]:
    shared = 0
    for ours, theirs in zip(reversed(name.split("/")), reversed(file.path.split("/")), strict=False):
        if ours != theirs:
            break
        shared += 1
    return name == file.source, shared


def _best(items: Sequence[int], closeness: Callable[[int], tuple[bool, int]]) -> list[int]:
    """Those that are closest; all of them, if there are several."""
    scores = [closeness(item) for item in items]
    highest = max(scores, default=None)
    return [item for item, score in zip(items, scores, strict=True) if score == highest]


def _same(name: str) -> str:
    return name


def _composed(name: str) -> str:
    return unicodedata.normalize("NFC", name)


def _folded(name: str) -> str:
    return unicodedata.normalize("NFC", _composed(name).casefold())


def _decoded(name: str) -> str:
    return _folded(unquote(name))


def _without_extension(name: str) -> str:
    return _decoded(posixpath.splitext(name)[0])


_SPELLINGS: tuple[tuple[Callable[[str], str], Callable[[str], str]], ...] = (
    (_same, _same),
    (_composed, _composed),
    (_folded, _folded),
    (_decoded, _decoded),
    (_decoded, _without_extension),
)
