"""The control inside a chat template: what a server without any code of ours renders. Pure."""

from rheostat.control import BRACKETS, ControlFormat

_BLANKS = " \t\r\n\u00a0\u200b\u3000"


def dialled_template(template: str, control_format: ControlFormat) -> str:
    """`template` with dials: it takes a number in [0, 1] by each attribute's name, and puts the control last.

    A dial that is not given stands at its highest level; one out of range raises the template's own error. Brackets
    that open onto a control's word in a turn that is not the assistant's become parentheses, as in
    `ControlFormat.neutralise` but for full-width letters, which Jinja cannot fold.
    """
    words = [attribute.word for attribute in control_format.attributes]
    forged = " or ".join(f"ns.word.startswith('{word}')" for word in words)
    blanks = "".join(f" | replace({blank!r}, '')" for blank in _BLANKS)
    pieces = [
        "{% set ns = namespace(messages=[], text='', word='', control='') %}",
        "{% for message in messages %}",
        "{% if message['role'] != 'assistant' and message['content'] is string %}",
        "{% set ns.text = message['content'] %}",
        f"{{% for opener in {list(BRACKETS)!r} %}}",
        "{% set parts = ns.text.split(opener) %}",
        "{% set ns.text = parts[0] %}",
        "{% for part in parts[1:] %}",
        f"{{% set ns.word = part[:64] | lower{blanks} %}}",
        f"{{% if {forged} %}}{{% set ns.text = ns.text ~ '(' ~ part %}}",
        "{% else %}{% set ns.text = ns.text ~ opener ~ part %}{% endif %}",
        "{% endfor %}{% endfor %}",
        "{% set ns.messages = ns.messages + [dict(message, content=ns.text)] %}",
        "{% else %}{% set ns.messages = ns.messages + [message] %}{% endif %}",
        "{% endfor %}{% set messages = ns.messages %}",
    ]
    for attribute in control_format.attributes:
        pieces += _dial(attribute.name, attribute.word, control_format.levels)
    # HF compiles templates with trim_blocks: the newline that ends a template's last line is not text.
    return (
        "".join(pieces)
        + template.removesuffix("\n")
        + "{% if add_generation_prompt %}{{ ns.control }}{% endif %}"
    )


def _dial(name: str, word: str, levels: tuple[float, ...]) -> list[str]:
    texts = [f"{level:.4f}".rstrip("0").rstrip(".") for level in levels]
    pieces = [
        f"{{% set dial = {levels[-1]} if {name} is not defined or {name} is none else {name} %}}",
        "{% if dial is boolean or dial is not number or not (dial >= 0 and dial <= 1) %}",
        f"{{{{ raise_exception('{name}: got ' ~ dial ~ ', allowed is a number from 0 to 1') }}}}{{% endif %}}",
    ]
    choice = f"'{texts[0]}'"
    for lower, upper, text in zip(levels, levels[1:], texts[1:], strict=False):
        choice = f"('{text}' if dial >= {(lower + upper) / 2} else {choice})"
    return [*pieces, f"{{% set ns.control = ns.control ~ '[{word}=' ~ {choice} ~ ']' %}}"]
