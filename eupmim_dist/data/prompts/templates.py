"""What a language model is asked, in several wordings each; one is drawn for a sample of the training.

A user and items are words of the text, such as user_12 and item_3 item_4 (prompt.py).
"""

from typing import Literal

PromptKind = Literal["explanation", "sequential", "direct"]
KINDS: tuple[PromptKind, ...] = ("explanation", "sequential", "direct")
"""The kinds of prompts; a model has prompt vectors of its own for each, in this order."""

SHORT = "{user} {items}"
"""What is asked where a model is judged, or asked in earnest, of every kind."""

EXPLANATION = (
    "Say why {user} would like {items} .",
    "Explain to {user} what speaks for {items} .",
    "Why is {items} a good choice for {user} ?",
    "Give {user} a reason to take {items} .",
    "{items} is recommended to {user} : write the explanation .",
    "What would {user} say about {items} ?",
    "Write a sentence for {user} about {items} .",
    "{user} looks at {items} ; tell what makes it worth having .",
    "Describe {items} in the way that convinces {user} .",
)
SEQUENTIAL = (
    "{user} took {items} in this order ; what comes next ?",
    "After {items} , which item does {user} take ?",
    "The history of {user} is {items} . Name the item that follows .",
    "Predict the next item of {user} , who has had {items} .",
    "{user} has bought {items} one after another . Then came",
    "These are the purchases of {user} : {items} . What is next ?",
    "Continue the list of {user} : {items}",
    "Knowing that {user} chose {items} , recommend what to choose now .",
)
DIRECT = (
    "Which of these items should {user} get ? {items}",
    "Pick one item for {user} from {items} .",
    "Among {items} , one suits {user} best . Which one ?",
    "Recommend to {user} an item of this list : {items}",
    "{user} takes one of the following : {items} . Name it .",
)
TEMPLATES: dict[PromptKind, tuple[str, ...]] = {
    "explanation": EXPLANATION,
    "sequential": SEQUENTIAL,
    "direct": DIRECT,
}
