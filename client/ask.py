"""Ask a question about registered documents: python client/ask.py "Who …?" --documents a b c"""

import argparse
import json
import sys
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

from connection import (
    Refused,
    Server,
    add_connection_options,
    as_text,
    exit_status,
    leave,
    server_of,
)

# Arguments that are the request's fields under the same names, where they are given.
FIELDS = (
    "system_text",
    "chat_template_kwargs",
    "mode",
    "link_tokens",
    "recompute_percent",
    "max_tokens",
    "stop_words",
    "stop_token_ids",
    "temperature",
    "top_k",
    "top_p",
    "min_p",
    "repetition_penalty",
    "presence_penalty",
    "frequency_penalty",
    "logit_bias",
    "seed",
    "min_tokens",
    "num_return_sequences",
    "return_log_probs",
    "num_top_log_probs",
    "timeout_seconds",
    "response_format",
)


def parse_arguments(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("question", nargs="?", help="'-' reads it from standard input")
    parser.add_argument(
        "--messages", metavar="FILE", help="a conversation in place of the question, as JSON"
    )
    parser.add_argument("--tools", metavar="FILE", help="definitions of tools, as JSON")
    parser.add_argument("--question", dest="named_question", metavar="TEXT", help="the same")
    parser.add_argument("--documents", nargs="+", default=[], metavar="DOCUMENT", help="id or name")
    parser.add_argument("--system-text", help="in place of the model's own system message")
    parser.add_argument(
        "--chat-template-kwargs",
        metavar="JSON",
        help="""variables of the chat template, as '{"enable_thinking": false}'""",
    )
    budget = parser.add_mutually_exclusive_group()
    budget.add_argument("--link-tokens", type=int, metavar="K", help="recomputed of each document")
    budget.add_argument("--recompute-percent", type=float, metavar="R", help="in place of them")
    modes = parser.add_mutually_exclusive_group()
    modes.add_argument(
        "--mode",
        help="legolink, spread, ranked, guided, guided-ranked, guided-drift, guided-ranked-drift, "
        "legolink-0 or full",
    )
    modes.add_argument("--full", dest="mode", action="store_const", const="full")
    parser.add_argument("--max-tokens", type=int, metavar="N")
    parser.add_argument("--stop-words", nargs="+", metavar="WORD")
    parser.add_argument("--stop-token-ids", nargs="+", type=int, metavar="ID")
    parser.add_argument("--temperature", type=float, help="default 0: the likeliest token")
    parser.add_argument("--top-k", type=int)
    parser.add_argument("--top-p", type=float)
    parser.add_argument("--min-p", type=float)
    for name in ("repetition", "presence", "frequency"):
        parser.add_argument(f"--{name}-penalty", type=float, metavar="X")
    parser.add_argument(
        "--logit-bias", metavar="JSON", help="""added to tokens' logits, as '{"17": -100}'"""
    )
    parser.add_argument("--seed", type=int)
    parser.add_argument("--min-tokens", type=int, metavar="N")
    parser.add_argument("--num-return-sequences", type=int, metavar="N", help="answers to draw")
    parser.add_argument("--return-log-probs", action="store_const", const=True)
    parser.add_argument("--num-top-log-probs", type=int, metavar="N", help="with JSON output")
    parser.add_argument("--timeout-seconds", type=float, metavar="S")
    parser.add_argument(
        "--response-format",
        metavar="JSON",
        help="""what the answer is to be, as '{"type": "json_object"}'""",
    )
    add_connection_options(parser)
    # Options first: with "?" the question would be taken for missing before it is come to.
    parsed = parser.parse_intermixed_args(arguments)
    given = [w for w in (parsed.question, parsed.named_question, parsed.messages) if w is not None]
    if len(given) != 1:
        parser.error(
            "there are several questions: one of the first word, --question and --messages says "
            "what is asked"
            if given
            else "there is no question: it stands first, or behind --question, or is in a file of "
            "--messages; options that take several values, as --documents, take all words up to "
            "the next option"
        )
    if parsed.messages is None:
        parsed.question = given[0]
    return parsed


def fields_of(server: Server, arguments: argparse.Namespace) -> dict[str, object]:
    given = {name: texts_in(getattr(arguments, name)) for name in FIELDS}
    fields = {name: value for name, value in given.items() if value is not None}
    if arguments.documents:
        names = map(as_text, arguments.documents)
        fields["document_ids"] = [server.document_id(name) for name in names]
    # Pieces of several answers come mixed: people read them one after another.
    mixed = arguments.format == "text" and fields.get("num_return_sequences", 1) != 1
    return {**prompt_of(arguments), "stream": not mixed, **fields}


def prompt_of(arguments: argparse.Namespace) -> dict[str, object]:
    """What is asked: the question, or the files' conversation and tools."""
    if arguments.messages is None:
        asked = arguments.question
        return {"text_input": standard_input() if asked == "-" else as_text(asked)}
    names = [name for name in ("messages", "tools") if getattr(arguments, name) is not None]
    return {name: text_of(getattr(arguments, name)) for name in names}


def text_of(path: str) -> str:
    try:
        return Path(path).read_bytes().decode("utf-8")
    except OSError as error:
        raise Refused(f"{path} can't be read: {error.strerror}") from None
    except UnicodeDecodeError as error:
        raise Refused(f"{path} is not UTF-8: {error.reason} at byte {error.start}") from None


def standard_input() -> str:
    try:
        return sys.stdin.buffer.read().decode("utf-8")
    except UnicodeDecodeError as error:
        raise Refused(
            f"standard input is not UTF-8: {error.reason} at byte {error.start}"
        ) from None


def texts_in(value: Any) -> Any:
    """An argument's value with its texts in UTF-8."""
    if isinstance(value, list):
        return [texts_in(item) for item in value]
    return as_text(value) if isinstance(value, str) else value


def ask(arguments: argparse.Namespace) -> int:
    """Print the answer as it comes, then its usage: to standard error, or as the last JSON line."""
    server = server_of(arguments)
    with closing(server.answers(fields_of(server, arguments))) as replies:
        if arguments.format == "json":
            for reply in replies:
                print(json.dumps(reply, ensure_ascii=False, allow_nan=False), flush=True)
            return 0
        last = print_texts(replies)
    print(usage_line(last), file=sys.stderr)
    return 0


def print_texts(replies: Iterator[dict[str, Any]]) -> dict[str, Any]:
    """Print the answer's pieces, and end their line however it ends; the last reply."""
    reply: dict[str, Any] = {}
    has_text = False
    try:
        for reply in replies:
            text = reply["text_output"]
            print(
                "\n\n".join(numbered(text)) if isinstance(text, list) else text, end="", flush=True
            )
            has_text = has_text or bool(text)
    finally:
        # What comes next, an error too, stands on a line of its own.
        if has_text or "finish_reason" in reply:
            print(flush=True)
    return reply


def numbered(texts: list[str]) -> list[str]:
    return [f"[{number}] {text}" for number, text in enumerate(texts)]


def usage_line(reply: dict[str, Any]) -> str:
    line = (
        "{prompt_tokens} prompt tokens: {cached_tokens} cached, {recomputed_tokens} recomputed, "
        "{fresh_tokens} fresh; {compiled_tokens} of the cached and recomputed compiled first; "
        "{documents_linked} documents linked, head {head}; "
        "{generated_tokens} generated, {finish_reason}; "
        "first after {time_to_first_token_seconds:.3f} s, all after {total_seconds:.3f} s"
    )
    if "cum_log_probs" in reply:
        line += "; log-probability {cum_log_probs}"
    listed = ("generated_tokens", "finish_reason", "cum_log_probs")
    return line.format(**{**reply, **{n: joined(reply[n]) for n in listed if n in reply}})


def joined(values: Any) -> str:
    """One answer's value as it is, those of several with commas between."""
    rounded = [
        f"{value:.2f}" if isinstance(value, float) else str(value)
        for value in (values if isinstance(values, list) else [values])
    ]
    return ", ".join(rounded)


def main(arguments: list[str] | None = None) -> int:
    parsed = parse_arguments(arguments)
    return exit_status(lambda: ask(parsed))


if __name__ == "__main__":
    leave(main())
