"""A template filled with a user and items, as text and as tokens that know which word they belong to.

S texts, T tokens, n items of a text.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from string import Formatter

import torch
from torch import Tensor

from eupmim_dist.data.batch import NO_ROW
from eupmim_dist.data.prompts.vocabulary import Vocabulary
from eupmim_dist.errors import UserError

NO_WORD, USER_WORD, FIRST_ITEM_WORD = 0, 1, 2
"""What a token is of: no user or item, the user, or the first item; the k-th item's is FIRST_ITEM_WORD + k."""


@dataclass(frozen=True)
class Prompt:
    text: str
    words: tuple[tuple[int, int], ...]
    """First and past-the-last character of the user's name and of each item's, in the order of the items."""


def fill(template: str, user: int, items: Sequence[int]) -> Prompt:
    """A template with the names of a user and items: user_12 for user row 11, as files count users from 1."""
    names = {"user": [f"user_{user + 1}"], "items": [f"item_{item}" for item in items]}
    text, spans = "", {}
    for literal, field, _, _ in Formatter().parse(template):
        text += literal
        for number, name in enumerate(names[field] if field else ()):
            text += " " * (number > 0)
            spans[field, number] = len(text), len(text) + len(name)
            text += name
    return Prompt(text, (spans["user", 0], *(spans["items", number] for number in range(len(items)))))


def tokenise(
    vocabulary: Vocabulary, prompts: Sequence[Prompt], most: int, told: Callable[[int], tuple[str, str]]
) -> tuple[Tensor, Tensor]:
    """Tokens of texts, and the word that each is of, a name being one word from its first letter to its last digit,
    whatever comes next: int64 [S, T] each, NO_ROW and NO_WORD past the end.

    Raises UserError for a text of more than `most` tokens; `told` says by its place what text that is, and the mend.
    """
    tokenised = [_tokenise(vocabulary, prompt) for prompt in prompts]
    for place, (tokens, _) in enumerate(tokenised):
        if len(tokens) > most:
            what, mend = told(place)
            raise UserError(f"task.max_tokens: {what} has {len(tokens):,} tokens, and {most:,} may be; {mend}")
    words = padded([words for _, words in tokenised])
    return padded([tokens for tokens, _ in tokenised]), words.clamp(min=NO_WORD)


def _tokenise(vocabulary: Vocabulary, prompt: Prompt) -> tuple[list[int], list[int]]:
    tokens: list[int] = []
    words: list[int] = []
    names = sorted((start, stop, number) for number, (start, stop) in enumerate(prompt.words, USER_WORD))
    begin, place = 0, 0
    for text in prompt.text.split(" "):
        part, end = vocabulary.part(text), begin + len(text)
        of_part = [NO_WORD] * len(part.tokens)
        while place < len(names) and names[place][0] < end:
            start, stop, number = names[place]
            if (found := part.tokens_of(start - begin, stop - begin)) is None:
                raise UserError(
                    f"task.tokenizer: {vocabulary.name}: has no token for a part of {prompt.text[start:stop]!r}; use "
                    "another one, such as t5-small's"
                )
            of_part[found] = [number] * (found.stop - found.start)
            place += 1
        tokens += part.tokens
        words += of_part
        begin = end + 1
    return [*tokens, vocabulary.end], [*words, NO_WORD]


def padded(texts: Sequence[Sequence[int]], width: int = 0) -> Tensor:
    """Tokens of texts as int64 [S, the longest or `width`], NO_ROW past the end."""
    width = max([width, *(len(text) for text in texts)])
    rows = [[*text, *[NO_ROW] * (width - len(text))] for text in texts]
    return torch.tensor(rows, dtype=torch.int64).view(len(texts), width)
