"""The segments that a chat template writes before and after each turn, inferred from what it renders.

Most templates write one turn after another, and what surrounds a turn depends only on its role and the
previous one (the first turn may come with a default system prompt). Such a template need not run Jinja for
each example. Samples are rendered both ways to find out; after any difference the segments are not used.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import product
from typing import NamedTuple

from app.datasets.chat_template import ChatTemplate
from app.datasets.types import ChatExample, ExampleError, Message, Role

_MARK = "\ufdd0toque\ufdd0"
_ROLES: tuple[Role, ...] = ("system", "user", "assistant")

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
)
"""Texts in many scripts on which tokenizers are known to differ."""


class TurnSegments(NamedTuple):
    """The text that the template writes before and after a turn's content."""

    opening: str
    closing: str
    strips: bool
    """Whether the template strips white space from both ends of the content."""


class TemplateSegments:
    """A template's segments by the role of the previous turn (None for the first) and of the turn itself."""

    def __init__(
        self, turns: dict[tuple[Role | None, Role], TurnSegments], special_texts: Sequence[str]
    ) -> None:
        self.turns = turns
        self._special = tuple(special_texts)

    @classmethod
    def infer(cls, template: ChatTemplate) -> TemplateSegments | None:
        """Infers the template's segments; returns None where the template cannot be expressed in segments."""
        turns: dict[tuple[Role | None, Role], TurnSegments] = {}
        for before, role in product((None, *_ROLES), _ROLES):
            turn = _infer_turn(template, before, role)
            if turn is not None:
                turns[before, role] = turn
        segments = cls(turns, template.special_texts)
        return segments if turns and all(segments.agrees(template, chat) for chat in sample_chats()) else None

    def agrees(self, template: ChatTemplate, chat: ChatExample) -> bool:
        """Returns whether both render the same text, or the segments do not cover the conversation."""
        texts: list[str] = []
        if self.render_turns(chat, texts) is None:
            return True
        try:
            return "".join(texts) == template.render(chat)
        except ExampleError:
            return False

    def render_turns(self, chat: ChatExample, texts: list[str]) -> list[tuple[TurnSegments, bool]] | None:
        """Appends each turn's text to `texts`; returns each turn's segments, and whether it is a target.

        Returns None, and appends nothing, for what the segments do not cover: tools, names, thoughts, roles
        that the template refused, and answers that begin with white space or a control token, since these may
        change how the white space before them is tokenized.
        """
        if chat.tools:
            return None
        before: Role | None = None
        parts: list[tuple[TurnSegments, bool]] = []
        whole: list[str] = []
        for message in chat.messages:
            turn = self.turns.get((before, message.role))
            content = message.content
            if (
                turn is None
                or not isinstance(content, str)
                or message.tool_calls
                or message.name is not None
                or message.tool_call_id is not None
                or message.thoughts is not None
            ):
                return None
            content = content.strip() if turn.strips else content
            is_target = message.role == "assistant" and message.weight != 0
            if is_target and (not content or content[0].isspace() or content.startswith(self._special)):
                return None
            parts.append((turn, is_target))
            whole.append(turn.opening + content + turn.closing)
            before = message.role
        texts += whole
        return parts


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


def _infer_turn(template: ChatTemplate, before: Role | None, role: Role) -> TurnSegments | None:
    if before is None and role == "assistant":
        return None  # templates differ in what the model is asked to follow
    earlier = [Message(before, "before")] if before is not None else []
    try:
        start = template.render(ChatExample(earlier)) if earlier else ""
        prompt = template.render(ChatExample(earlier), generation_prompt=True) if earlier else None
        whole = template.render(ChatExample([*earlier, Message(role, _MARK)]))
        spaced = template.render(ChatExample([*earlier, Message(role, f" {_MARK} ")]))
    except ExampleError:
        return None
    if not whole.startswith(start) or whole.count(_MARK) != 1:
        return None
    opening, _, closing = whole[len(start) :].partition(_MARK)
    if role == "assistant" and (not closing.strip() or (prompt is not None and prompt != start + opening)):
        return None
    if spaced not in (whole, whole.replace(_MARK, f" {_MARK} ")):
        return None
    return TurnSegments(opening, closing, strips=spaced == whole)
