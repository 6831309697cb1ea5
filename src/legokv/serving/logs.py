"""How a model process logs: to standard error, which becomes the server's log."""

import logging

from legokv.serving import log
from legokv.serving.settings import Settings


def log_to_server(model: str, settings: Settings) -> None:
    """Let lines of the settings' level through: requests' as they are, others with the model's
    name."""
    form = f"%(asctime)s {model} %(levelname)s %(name)s: %(message)s"
    logging.basicConfig(level=settings.log_level.upper(), format=form)
    requests = logging.StreamHandler()
    requests.setFormatter(logging.Formatter("%(message)s"))
    log.log.addHandler(requests)
    log.log.propagate = False
    log.log.disabled = settings.request_log == "off"
