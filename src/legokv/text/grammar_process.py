"""Tries a format of answers in a process of its own, which may take only so much time and memory.

What a client writes there is a program of others': one that ends the process that compiles it, or
takes too long, is refused before the engine's own process compiles it.
"""

import json
import resource
import subprocess
import sys

from llguidance import LLMatcher, LLParserLimits

from legokv.text.template_process import environment, limit

MAX_CPU_SECONDS = 2
MAX_WALL_SECONDS = 60
"""More than the CPU's, for a machine whose cores are taken."""
MAX_MEMORY_BYTES = 1 << 30
MAX_STACK_BYTES = 1 << 20
"""An eighth of what a thread of a server has."""
LIMITS = LLParserLimits(
    max_items_in_row=2_000,
    initial_lexer_fuel=500_000,
    step_lexer_fuel=100_000,
    step_max_items=20_000,
    max_lexer_states=20_000,
    max_grammar_size=100_000,
    verbose_errors=False,
)


def why_refused(grammar: str) -> str:
    """Why this grammar of llguidance's cannot be compiled; "" if it can be."""
    bounds = f"{MAX_CPU_SECONDS} seconds and {MAX_MEMORY_BYTES >> 20} MiB"
    try:
        finished = subprocess.run(
            # -P: modules are ours and the environment's, never the working folder's.
            [sys.executable, "-P", "-m", __name__],
            input=grammar.encode(),
            env=environment(),
            capture_output=True,
            check=False,
            timeout=MAX_WALL_SECONDS,
        )
    except subprocess.TimeoutExpired:
        return f"it is still being compiled after {MAX_WALL_SECONDS} seconds"
    if finished.returncode:
        return f"it is too deep, or takes more than {bounds} to compile"
    return str(json.loads(finished.stdout))


def main() -> None:
    """Answer the one grammar on standard input."""
    limit(resource.RLIMIT_CORE, 0)
    limit(resource.RLIMIT_AS, MAX_MEMORY_BYTES)
    limit(resource.RLIMIT_STACK, MAX_STACK_BYTES)
    limit(resource.RLIMIT_CPU, MAX_CPU_SECONDS)
    grammar = sys.stdin.buffer.read().decode()
    is_error, messages = LLMatcher.validate_grammar_with_warnings(grammar, limits=LIMITS)
    json.dump(messages[0] if is_error else "", sys.stdout)


if __name__ == "__main__":
    main()
