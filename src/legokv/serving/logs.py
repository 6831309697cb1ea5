"""How a model process logs: to standard error, which becomes the server's log."""

import logging


def log_to_server(model: str) -> None:
    """Let this process's log lines through, each with the model's name."""
    form = f"%(asctime)s {model} %(levelname)s %(name)s: %(message)s"
    logging.basicConfig(level=logging.INFO, format=form)
