"""The runners that the GPU tests compare: the model on the device, and on the CPU."""

from gpu_kernels import Kernels
from torch import Tensor

from legokv.model.config import ModelConfig
from legokv.runners import Runner
from legokv.runners.attention_forms import KernelForm, TorchForm
from legokv.runners.eager import EagerRunner

Weights = dict[str, Tensor]


def cpu_runner(config: ModelConfig, weights: Weights, num_pages: int, page_size: int) -> Runner:
    return EagerRunner(config, weights, TorchForm(config), num_pages=num_pages, page_size=page_size)


def device_runner(
    kernels: Kernels, config: ModelConfig, weights: Weights, num_pages: int, page_size: int
) -> Runner:
    """The product's runner over the kernels' device, which with the host form is the CPU."""
    return EagerRunner(
        config,
        weights,
        KernelForm(kernels.launchers, config, kernels.device),
        kernels.device,
        num_pages=num_pages,
        page_size=page_size,
    )
