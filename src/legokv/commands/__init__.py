"""The `legokv` command's subcommands, one module each, and what they share of printing."""

import json

Facts = dict[str, object]


def print_facts(facts: Facts, form: str) -> None:
    """Print the facts on standard output, as `form` "text" or "json"."""
    if form == "json":
        print(json.dumps(facts, allow_nan=False))
        return
    for name, value in facts.items():
        if isinstance(value, dict):
            for inner, numbers in value.items():
                print(f"{name} {inner}: {', '.join(f'{k} {v}' for k, v in numbers.items())}")
        else:
            print(f"{name}: {value}")
