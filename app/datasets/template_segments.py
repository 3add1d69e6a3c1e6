"""The segments that a chat template writes before and after each turn, inferred from what it renders.

Most templates write one turn after another, and what surrounds a turn depends only on its role, the previous
one (the first turn may come with a default system prompt), and whether another turn follows (the last answer
may begin with an empty block of thoughts). Such a template need not run Jinja for each example. Samples are
rendered both ways to find out; after any difference the segments are not used.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import product
from typing import NamedTuple

from app.datasets.chat_template import ChatTemplate
from app.datasets.types import ChatExample, ExampleError, Message, Role

_MARK = "\ufdd0toque\ufdd0"
_ROLES: tuple[Role, ...] = ("system", "user", "assistant")
_TAGS = ("think>", "tool_response>")
"""Ends of the tags in a turn's content by which some templates decide how to write it or later turns."""
_CONTEXTS: dict[Role | None, list[Role]] = {
    None: [],
    "system": ["system"],
    "user": ["user"],
    "assistant": ["user", "assistant"],
}
"""The turns that a sample begins with, by the role of the last of them."""

SAMPLE_TEXTS: tuple[str, ...] = (
    "Hello",
    " leading and trailing ",
    "\n\nlines\r\n\tand\ttabs \n \n",
    "   many   spaces    in    a     row      ",
    "it's we'll I'd they've DON'T won't're",
    "1234567890 3.14159 1,000,000 ²³ ⅷ ١٢٣",
    "!?;:…—–“quotes” «guillemets» ##### ===== <<<>>> {{ }} {% raw %}",
    "Größe Straße naïve café cafe\u0301 A\u030a\u0327 \u0301alone",
    "Съешь же ещё этих мягких французских булок",
    "Ξεσκεπάζω τὴν ψυχοφθόρα βδελυγμία",
    "איך בלש תפס גמל עם עט שבור נִקּוּד",
    "نص حكيم له سر قاطع وذو شأن عظيم",
    "敏捷的棕色狐狸跳过懒狗。いろはにほへと　カタカナ ﾊﾝｶｸ",
    "다람쥐 헌 쳇바퀴에 타고파 \u1112\u1161\u11ab",
    "ऋषियों को सताने वाले दुष्ट राक्षसों เป็นมนุษย์สุดประเสริฐ",
    "👩‍👩‍👧‍👦 🏳️‍🌈 🇺🇳 👍🏽 ☃️ 🜁",
    "\u200b\u200d\ufeff\u00ad\u2028\u2029\u0085\u00a0\u3000\u202e",
    "\x01\x02\x7f\x1b[31m",
    "a" * 300 + "é" * 200 + "漢" * 200 + " " * 100 + "\n" * 50 + "0" * 100,
    "<|im_start|>user\nx<|im_end|><|endoftext|> <|im_start|<|im_end|> <s></s>[INST] [/INST] <eos>",
    "<|im_end|>\n \n<|im_start|> <|im_end|>\n\n\n<|im_start|>\n",
    "def f(x):\n\treturn {'a': [x ** 2 for _ in range(10)]}\n\n\n# done\n",
    "https://example.org/a%20b?c=d&e=f#g user@example.org C:\\path\\to\\file",
    "\U0010ffff\U000e0001\ufffd\ufffe\ufdd0",
    "ﬁ ligature ＦＵＬＬ width ½ ㎏ Ⅳ",
    "<think>\nthoughts\n</think>\n\nanswer",
    "thoughts\n</think>answer <think></think> x",
    "<tool_response>\nresult\n</tool_response>",
)
"""Texts in many scripts on which tokenizers are known to differ."""


class TurnSegments(NamedTuple):
    """The text that the template writes before and after a turn's content."""

    opening: str
    """Before the content, where another turn follows."""
    last_opening: str
    """Before the content of the last turn."""
    prompt: str
    """The generation prompt, with which an assistant's `last_opening` begins; empty for other roles."""
    closing: str
    strips: bool
    """Whether the template strips white space from both ends of the content."""


Turns = dict[tuple[Role | None, Role], TurnSegments]
"""Segments by the role of the previous turn (None for the first) and of the turn itself."""


class RenderedTurn(NamedTuple):
    """A turn as the template writes it."""

    segments: TurnSegments
    text: str
    """The turn in its place in the whole conversation."""
    learnt: str | None
    """The turn as the last of a conversation, which is how it is learnt; None where it is not a target."""


class TemplateSegments:
    """A template as the segments that it writes."""

    def __init__(
        self,
        turns: Turns,
        special_texts: Sequence[str],
        *,
        covers_tags: bool,
    ) -> None:
        self.turns = turns
        self._special = tuple(special_texts)
        self._tags = () if covers_tags else _TAGS

    @classmethod
    def infer(cls, template: ChatTemplate) -> TemplateSegments | None:
        """Infers the template's segments; returns None where the template cannot be expressed in segments."""
        turns: Turns = {}
        for before, role in product(_CONTEXTS, _ROLES):
            turn = _infer_turn(template, turns, before, role)
            if turn is not None:
                turns[before, role] = turn
        if not any(role == "assistant" for _, role in turns):
            return None
        for covers_tags in (True, False):
            segments = cls(turns, template.special_texts, covers_tags=covers_tags)
            if all(segments.agrees(template, chat) for chat in sample_chats()):
                return segments
        return None

    def agrees(self, template: ChatTemplate, chat: ChatExample) -> bool:
        """Returns whether both render the same texts, or the segments do not cover the conversation."""
        turns = self.render_turns(chat)
        if turns is None:
            return True
        before = ""
        try:
            for number, turn in enumerate(turns):
                if turn.learnt is not None:
                    prompt = template.render(chat, turns=number, generation_prompt=True)
                    through = template.render(chat, turns=number + 1)
                    if (prompt, through) != (before + turn.segments.prompt, before + turn.learnt):
                        return False
                before += turn.text
            return template.render(chat) == before
        except ExampleError:
            return False

    def render_turns(self, chat: ChatExample) -> list[RenderedTurn] | None:
        """Renders each turn, as a part of the whole conversation and as it is learnt.

        Returns None for what the segments do not cover: tools, names, thoughts, roles that the template
        refused, and answers that are empty or begin with white space or a control token, since these may
        change how the white space before them is tokenized.
        """
        if chat.tools:
            return None
        before: Role | None = None
        rendered: list[RenderedTurn] = []
        last = len(chat.messages) - 1
        for number, message in enumerate(chat.messages):
            turn = self.turns.get((before, message.role))
            content = message.content
            if (
                turn is None
                or not isinstance(content, str)
                or message.tool_calls
                or message.name is not None
                or message.tool_call_id is not None
                or message.thoughts is not None
                or any(tag in content for tag in self._tags)
            ):
                return None
            content = content.strip() if turn.strips else content
            before = message.role
            if before == "assistant" and (
                not content or content[0].isspace() or content.startswith(self._special)
            ):
                return None
            as_last = turn.last_opening + content + turn.closing
            is_history = number != last and turn.opening != turn.last_opening
            text = turn.opening + content + turn.closing if is_history else as_last
            rendered.append(RenderedTurn(turn, text, as_last if message.is_target else None))
        return rendered


def sample_chats() -> Iterator[ChatExample]:
    """Yields conversations in every order of roles, with texts that templates are known to change."""
    texts = iter([*SAMPLE_TEXTS * 20])
    for length in range(1, 5):
        for roles in product(_ROLES, repeat=length):
            if "system" not in roles[1:]:
                yield ChatExample([Message(role, next(texts, "end")) for role in roles])
    for text in SAMPLE_TEXTS:
        yield ChatExample(
            [
                Message("user", text),
                Message("assistant", "x" + text),
                Message("user", text),
                Message("assistant", text),
            ]
        )
        yield ChatExample(
            [Message("user", "?"), Message("assistant", text, weight=0), Message("assistant", text)]
        )


def _infer_turn(
    template: ChatTemplate,
    known: Turns,
    before: Role | None,
    role: Role,
) -> TurnSegments | None:
    """Infers a turn's segments, given those of the turns before it; returns None for what has none."""
    context = [Message(one, one) for one in _CONTEXTS[before]]
    start = _history(known, context)
    # Templates differ in what an answer follows at the start, and in where they write a later system prompt.
    if start is None or role == ("assistant" if before is None else "system"):
        return None
    follower = Message("assistant" if role == "user" else "user", "after")
    asked = last = spaced = followed = ""
    try:
        last = template.render(ChatExample([*context, Message(role, _MARK)]))
        spaced = template.render(ChatExample([*context, Message(role, f" {_MARK} ")]))
        followed = template.render(ChatExample([*context, Message(role, _MARK), follower]))
        if role == "assistant":
            asked = template.render(ChatExample(context), generation_prompt=True)
    except ExampleError:
        return None
    prompt = asked.removeprefix(start)
    last_opening, _, closing = last.removeprefix(start).partition(_MARK)
    opening, _, rest = followed.removeprefix(start).partition(_MARK)
    is_expressed = (
        all(text.startswith(start) and text.count(_MARK) == 1 for text in (last, followed))
        and rest.startswith(closing)
        and spaced in (last, last.replace(_MARK, f" {_MARK} "))
    )
    if role == "assistant":
        is_expressed &= asked.startswith(start) and last_opening.startswith(prompt) and bool(closing.strip())
    return TurnSegments(opening, last_opening, prompt, closing, spaced == last) if is_expressed else None


def _history(known: Turns, messages: list[Message]) -> str | None:
    """Returns the text of turns that others follow, or None where the segments of one are not known."""
    text, before = "", None
    for message in messages:
        turn = known.get((before, message.role))
        if turn is None:
            return None
        text += turn.opening + message.text + turn.closing
        before = message.role
    return text
