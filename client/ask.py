"""Ask a question about registered documents: python client/ask.py "Who …?" --documents a b c"""

import argparse
import json
import sys
from contextlib import closing
from typing import Any

from connection import Server, add_connection_options, exit_status

# Arguments that are the request's fields under the same names, where they are given.
FIELDS = (
    "system_text",
    "chat_template_kwargs",
    "mode",
    "link_tokens",
    "max_tokens",
    "stop_words",
    "temperature",
    "top_k",
    "top_p",
    "min_p",
    "repetition_penalty",
    "presence_penalty",
    "frequency_penalty",
    "seed",
    "min_tokens",
    "num_return_sequences",
    "return_log_probs",
    "num_top_log_probs",
    "timeout_seconds",
)


def parse_arguments(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("question", help="'-' reads it from standard input")
    parser.add_argument("--documents", nargs="+", default=[], metavar="DOCUMENT", help="id or name")
    parser.add_argument("--system-text", help="in place of the model's own system message")
    parser.add_argument(
        "--chat-template-kwargs",
        metavar="JSON",
        help="""variables of the chat template, as '{"enable_thinking": false}'""",
    )
    parser.add_argument("--link-tokens", type=int, metavar="K", help="recomputed of each chunk")
    modes = parser.add_mutually_exclusive_group()
    modes.add_argument("--mode", help="legolink, legolink-0 or full")
    modes.add_argument("--full", dest="mode", action="store_const", const="full")
    parser.add_argument("--max-tokens", type=int, metavar="N")
    parser.add_argument("--stop-words", nargs="+", metavar="WORD")
    parser.add_argument("--temperature", type=float, help="default 0: the likeliest token")
    parser.add_argument("--top-k", type=int)
    parser.add_argument("--top-p", type=float)
    parser.add_argument("--min-p", type=float)
    for name in ("repetition", "presence", "frequency"):
        parser.add_argument(f"--{name}-penalty", type=float, metavar="X")
    parser.add_argument("--seed", type=int)
    parser.add_argument("--min-tokens", type=int, metavar="N")
    parser.add_argument("--num-return-sequences", type=int, metavar="N", help="answers to draw")
    parser.add_argument("--return-log-probs", action="store_const", const=True)
    parser.add_argument("--num-top-log-probs", type=int, metavar="N", help="with JSON output")
    parser.add_argument("--timeout-seconds", type=float, metavar="S")
    add_connection_options(parser)
    return parser.parse_args(arguments)


def fields_of(server: Server, arguments: argparse.Namespace) -> dict[str, object]:
    question = sys.stdin.read() if arguments.question == "-" else arguments.question
    given = {name: getattr(arguments, name) for name in FIELDS}
    fields = {name: value for name, value in given.items() if value is not None}
    if arguments.documents:
        fields["document_ids"] = [server.document_id(name) for name in arguments.documents]
    # Pieces of several answers come mixed: people read them one after another.
    mixed = arguments.format == "text" and fields.get("num_return_sequences", 1) != 1
    return {"text_input": question, "stream": not mixed, **fields}


def ask(arguments: argparse.Namespace) -> int:
    """Print the answer as it comes, then its usage: to standard error, or as the last JSON line."""
    server = Server(arguments.url, arguments.namespace)
    with closing(server.answers(fields_of(server, arguments))) as replies:
        for reply in replies:
            if arguments.format == "json":
                print(json.dumps(reply, ensure_ascii=False, allow_nan=False), flush=True)
                continue
            if isinstance(reply["text_output"], list):
                print("\n\n".join(numbered(reply["text_output"])))
            else:
                print(reply["text_output"], end="", flush=True)
            if "finish_reason" in reply:
                print(flush=True)
                print(usage_line(reply), file=sys.stderr)
    return 0


def numbered(texts: list[str]) -> list[str]:
    return [f"[{number}] {text}" for number, text in enumerate(texts)]


def usage_line(reply: dict[str, Any]) -> str:
    line = (
        "{prompt_tokens} prompt tokens: {cached_tokens} cached, {recomputed_tokens} recomputed, "
        "{fresh_tokens} fresh; {compiled_tokens} of the cached and recomputed compiled first; "
        "{documents_linked} documents linked; {generated_tokens} generated, {finish_reason}; "
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
    sys.exit(main())
