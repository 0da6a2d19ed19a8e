"""Whether a prompt leaves a model room for its control and a response."""

from rheostat import plugins
from rheostat.chat import encode_prompt
from rheostat.config import RunConfig
from rheostat.errors import PromptTooLong
from rheostat.models import Reader
from rheostat.records import Prompt


def fits(prompt: Prompt, reader: Reader, config: RunConfig) -> bool:
    """Whether a prompt leaves room for its control and a response; with `prompts.strict` raises `PromptTooLong`."""
    control_format = config.control_format
    longest = control_format.render(dict.fromkeys(control_format.names, 0.25))
    phrases = " ".join(max(plugins.attribute(name).phrases.values(), key=len) for name in config.rewards)
    ids = encode_prompt(
        reader.tokenizer,
        prompt.messages,
        control_text=longest + phrases,
        neutralise=control_format.neutralise,
    )
    reserve = min(longest_response(config), reader.context // 4)
    if len(ids) + reserve <= reader.context:
        return True
    if config.prompts.strict:
        raise PromptTooLong(
            f"the prompt {prompt.text[:60]!r}… takes {len(ids)} tokens with its control, allowed are "
            f"{reader.context - reserve} (the context of {reader.context} less {reserve} for the response)",
            hint="shorten it, or leave out --strict to skip such prompts",
        )
    return False


def longest_response(config: RunConfig) -> int:
    """The longest response of the run, in tokens, wherever it is generated."""
    return max(config.generate.max_tokens, config.evaluate.max_tokens)
