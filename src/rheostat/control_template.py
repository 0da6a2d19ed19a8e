"""The control inside a chat template: what a server without any code of ours renders. Pure."""

from rheostat.control import BRACKETS, CLOSERS, ControlFormat

_BLANKS = " \t\r\n\u00a0\u200b\u3000"


def dialled_template(template: str, control_format: ControlFormat) -> str:
    """`template` with dials: it takes a number in [0, 1] by each attribute's name, and puts the control last.

    A dial that is not given stands at its highest level; one out of range raises the template's own error. Brackets
    that open onto a control's word in any turn become parentheses, as in
    `ControlFormat.neutralise` but for full-width letters, which Jinja cannot fold.
    """
    words = [attribute.word for attribute in control_format.attributes]
    forged = " or ".join(f"ns.word.startswith('{word}')" for word in words)
    blanks = "".join(f" | replace({blank!r}, '')" for blank in _BLANKS)
    pieces = [
        "{% set ns = namespace(messages=[], text='', part='', head='', word='', open=false, control='') %}",
        "{% for message in messages %}",
        "{% if message['content'] is string %}",
        "{% set ns.text = message['content'] | replace('\\x00', '') %}",
        # A mark before every opener, a split at the marks: each part but the first begins with its opener.
        f"{{% for opener in {list(BRACKETS)!r} %}}",
        "{% set ns.text = ns.text | replace(opener, '\\x00' ~ opener) %}",
        "{% endfor %}",
        "{% set parts = ns.text.split('\\x00') %}",
        "{% set ns.text = parts[0] %}{% set ns.open = false %}",
        "{% for part in parts[1:] %}",
        f"{{% set ns.word = part[1:65] | lower{blanks} %}}{{% set ns.part = part %}}",
        f"{{% if {forged} %}}{{% set ns.open = true %}}{{% set ns.part = '(' ~ part[1:] %}}{{% endif %}}",
        "{% if ns.open %}{% set ns.head = ns.part %}",
        f"{{% for closer in {list(CLOSERS)!r} %}}{{% set ns.head = ns.head.split(closer)[0] %}}{{% endfor %}}",
        "{% if ns.head | length < ns.part | length %}{% set ns.open = false %}",
        "{% set ns.part = ns.head ~ ')' ~ ns.part[(ns.head | length) + 1:] %}{% endif %}{% endif %}",
        "{% set ns.text = ns.text ~ ns.part %}",
        "{% endfor %}",
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
