"""Training with parameters, their average, gradients and optimizer states shared out over the processes (FSDP2)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, cast

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import WeightAveraging
from lightning.pytorch.strategies import DDPStrategy
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, Shard, distribute_tensor
from torch.optim import Optimizer
from torch.utils._pytree import tree_map_only


class FullyShardedStrategy(DDPStrategy):
    """Lightning's DDP strategy, but each process keeps a share of the classifier, not a copy.

    What is saved is whole, as one process writes it, so a run may go on with another strategy or number of processes.
    Lightning's own ModelParallelStrategy counts optimizer states in the order of the model, not of the optimizer's
    groups: only it could read its checkpoints.
    weights: of the classifier on the CPU, whole, once training has ended; the same on every process.
    """

    weights: Mapping[str, Tensor]
    mesh: DeviceMesh

    def setup_environment(self) -> None:
        """Connect the processes."""
        super().setup_environment()
        self.mesh = init_device_mesh(self.root_device.type, (self.world_size,))

    def configure_ddp(self) -> None:
        """Share out the classifier, where DDP would wrap the module."""
        share_out(self._classifier, self.mesh)

    def optimizer_state(self, optimizer: Optimizer) -> dict[str, Tensor]:
        """The whole state of an optimizer, on every process."""
        state: dict[str, Tensor] = tree_map_only(DTensor, _whole, super().optimizer_state(optimizer))
        return state

    def load_optimizer_state_dict(self, checkpoint: Mapping[str, Any]) -> None:
        """Take this process's share of whole states."""
        for optimizer, state in zip(self.optimizers, checkpoint["optimizer_states"], strict=True):
            parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
            shares = {
                number: {name: _share(value, parameters[number]) for name, value in values.items()}
                for number, values in state["state"].items()
            }
            optimizer.load_state_dict({**state, "state": shares})

    def on_train_end(self) -> None:
        """Put the weights together, while all processes are there; the averaged ones are in place by now."""
        self.weights = self._classifier.state_dict()

    def teardown(self) -> None:
        """End as Lightning's strategies do, but leave the shares on their device: a mesh is of one."""
        assert self.cluster_environment is not None
        assert self.accelerator is not None
        self.cluster_environment.teardown()
        self.precision_plugin.teardown()
        self.accelerator.teardown()

    @property
    def _classifier(self) -> nn.Module:
        return cast(nn.Module, cast(Any, self.lightning_module).model)


class SharedAveraging(WeightAveraging):
    """Lightning's callback, which also averages the share of a process; what it saves is whole as well."""

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Copy the module; the copy becomes what the strategy will make of the module: of its precision, shared out."""
        super().setup(trainer, pl_module, stage)
        if self._average_model is None:
            return
        trainer.precision_plugin.convert_module(self._average_model.module)
        if isinstance(trainer.strategy, FullyShardedStrategy):
            share_out(cast(nn.Module, self._average_model.module.model), trainer.strategy.mesh)


def share_out(model: nn.Module, mesh: DeviceMesh) -> None:
    """Leave each process of a mesh its share of every parameter, in place; forward and backward gather them.

    All processes begin with the same parameters. state_dict gives whole tensors on the CPU on every process, and
    load_state_dict takes such.
    """
    for module in model.modules():
        weight = getattr(module, "weight", None)
        if isinstance(module, nn.Conv2d) and isinstance(weight, Tensor) and not weight.is_contiguous():
            module.register_forward_pre_hook(_channels_last)  # shares are contiguous, so the films carry the layout
    for parameter in model.parameters():
        parameter.data = parameter.data.contiguous()
    # the whole network at once: A3's and PWAP's ops take parameters of several modules, in none of their forwards;
    # gathered again for the backward pass, so that between passes there are only shares, which averaging swaps
    fully_shard(model, mesh=mesh, reshard_after_forward=True, shard_placement_fn=partial(_axis, mesh.size()))
    model.register_state_dict_post_hook(_gather)
    model.register_load_state_dict_pre_hook(_take_shares)


def _axis(processes: int, parameter: nn.Parameter) -> Shard:
    """The first axis that makes equal shares: a gate of few organs has a short first one."""
    even = (axis for axis, length in enumerate(parameter.shape) if length and length % processes == 0)
    return Shard(next(even, 0))


def local(tensors: Sequence[Tensor]) -> list[Tensor]:
    """What this process keeps of tensors, in the same memory."""
    return [tensor.to_local() if isinstance(tensor, DTensor) else tensor for tensor in tensors]


def _gather(module: nn.Module, state: dict[str, Any], prefix: str, _: Any) -> None:
    for name, value in state.items():
        if name.startswith(prefix):
            state[name] = _whole(value) if isinstance(value, DTensor) else value


def _take_shares(module: nn.Module, state: dict[str, Any], prefix: str, *_: Any) -> None:
    for name, parameter in module.named_parameters():
        if prefix + name in state:
            state[prefix + name] = _share(state[prefix + name], parameter)


def _whole(value: DTensor) -> Tensor:
    return value.full_tensor().cpu()


def _share(value: Any, parameter: Tensor) -> Any:
    """This process's part of a whole tensor that belongs to a parameter; what has another shape stays."""
    if not isinstance(value, Tensor) or not isinstance(parameter, DTensor) or value.shape != parameter.shape:
        return value
    value = value.to(parameter.device).contiguous()
    return distribute_tensor(value, parameter.device_mesh, parameter.placements, src_data_rank=None)


def _channels_last(module: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    return (inputs[0].contiguous(memory_format=torch.channels_last), *inputs[1:])
