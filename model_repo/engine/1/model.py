"""The engine model: a command in, events out. What it does is in legokv.serving."""

import os

from legokv.serving.answering import answer_in_thread
from legokv.serving.ending import failure_told
from legokv.serving.engine_service import EngineService
from legokv.serving.log import log_to_server
from legokv.serving.metrics import Publisher
from legokv.serving.secret import replies_to_own, secret_in
from legokv.serving.settings_sources import settings_from
from legokv.serving.triton.metrics_port import MetricsPort
from legokv.serving.triton.processes import keep_memory_private
from legokv.serving.triton.tensors import TensorResponder, Tensors


class TritonPythonModel:
    def initialize(self, args):
        self.tensors = Tensors(args["model_config"])
        keep_memory_private()
        self.secret = secret_in(os.environ)
        with failure_told("engine", os.environ):
            settings = settings_from(None, os.environ, {})
            log_to_server("engine", settings)
            self.service = EngineService.open(settings)
        self.metrics = Publisher(self.service.samples, MetricsPort())

    def execute(self, requests):
        for request in requests:
            responder = TensorResponder(self.tensors, request)
            received = self.tensors.received(request)
            replies = received.replies(replies_to_own, self.secret, self.service.replies)
            answer_in_thread(replies, responder)

    def finalize(self):
        self.metrics.close()
        self.service.close()
