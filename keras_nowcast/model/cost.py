"""The cost of the UNet, counted layer by layer before it is built. Without TensorFlow.

Conventions. A multiply-add is two FLOPs; an addition, comparison, division or square root is one.
Convolutions count every tap, including those on the zero padding, as profilers do. Everything
counted per sample is exactly proportional to the batch. What happens once per step (the optimizer,
the allreduce of the gradients) is counted per step.

Bytes moved are those of an ideal memory without caches: each operation reads its operands and
writes its results once. Normalization reads its input twice, for the statistics and to apply them;
activation is fused into the normalization before it.
"""

import dataclasses
from dataclasses import dataclass

from keras_nowcast.model.sizes import check_sizes, default_center_filters, level_filters

BYTES = {"float32": 4, "mixed_float16": 2, "mixed_bfloat16": 2}  # of an activation
FLOAT32_BYTES = 4  # variables, gradients, head and loss, under every policy

# FLOPs per element of a layer's output (for the backward pass of pooling, of its input).
SCALING = 3  # compare with missing, subtract, divide
POOLING = 3  # three comparisons find the largest of four
NORMALIZATION = 2  # multiply, add
STATISTICS = 4  # mean: add; variance: subtract, multiply, add
NORMALIZATION_BACKWARD = 9  # beta: add; gamma: 4; input: 4
FROZEN_BACKWARD = 1  # of a frozen normalization, whose statistics are constants: input: multiply
LOSS = 6  # scale the target: 2; compare, subtract, multiply, add
LOSS_BACKWARD = 1
ADAM = 12  # per parameter: first moment 3, second 4, update 5
UNSCALE = 2  # per parameter, under a loss scale: divide, test for infinity


@dataclass(frozen=True)
class LayerCost:
    """One layer of the UNet and its cost.

    Attributes:
      name: as in the built model.
      kind: scaling, convolution, transposed convolution, pooling, normalization, activation,
        concatenation or loss.
      side: pixels along a side of its output, (side, side, channels).
      channels: of its output.
      input_side: pixels along a side of its input.
      input_channels: of its input.
      kernel: side of the kernel; 0 for a layer without one.
      passes_gradient: whether the gradient with respect to its input is needed.
      is_float32: whether it computes in float32 under every policy.
      is_frozen: whether it is a normalization whose averages, scales and offsets stay as they are.
    """

    name: str
    kind: str
    side: int
    channels: int
    input_side: int
    input_channels: int
    kernel: int = 0
    passes_gradient: bool = True
    is_float32: bool = False
    is_frozen: bool = False

    @property
    def outputs(self):
        """Elements of the output of one sample."""
        return self.side**2 * self.channels

    @property
    def inputs(self):
        """Elements of the input of one sample."""
        return self.input_side**2 * self.input_channels

    @property
    def kernel_parameters(self):
        """Parameters of the kernel, without the bias."""
        return self.kernel**2 * self.input_channels * self.channels

    @property
    def trainable_parameters(self):
        """Parameters that training changes."""
        if self.kind == "normalization":
            return 0 if self.is_frozen else 2 * self.channels  # gamma and beta
        return self.kernel_parameters + self.channels if self.kernel else 0

    @property
    def parameters(self):
        """All parameters, including the moving mean and variance of a normalization."""
        return 4 * self.channels if self.kind == "normalization" else self.trainable_parameters

    @property
    def kernel_flops(self):
        """FLOPs of one pass of the kernel over a sample: forward, or one of the two backward."""
        if self.kind == "convolution":
            return 2 * self.side**2 * self.kernel_parameters
        if self.kind == "transposed convolution":
            return 2 * self.input_side**2 * self.kernel_parameters
        return 0

    @property
    def forward_flops(self):
        """FLOPs of one sample in a forecast, in which normalization uses its moving averages."""
        each = {
            "scaling": SCALING,
            "pooling": POOLING,
            "normalization": NORMALIZATION,
            "activation": 1,
            "convolution": 1,  # the bias
            "transposed convolution": 1,
        }
        return self.kernel_flops + each.get(self.kind, 0) * self.outputs

    @property
    def training_flops(self):
        """FLOPs of one sample in a training step, forward and backward."""
        if self.kind == "loss":
            return (LOSS + LOSS_BACKWARD) * self.outputs
        normalization = STATISTICS + NORMALIZATION_BACKWARD
        backward = {
            "convolution": self.outputs,  # the gradient of the bias
            "transposed convolution": self.outputs,
            "pooling": self.inputs,
            "normalization": (FROZEN_BACKWARD if self.is_frozen else normalization) * self.outputs,
            "activation": self.outputs,
            "concatenation": self.outputs
            // 2,  # adds the gradient of the skip connection to that of the pooling
        }
        by_operands = self.kernel_flops * (2 if self.passes_gradient else 1)
        return self.forward_flops + by_operands + backward.get(self.kind, 0)

    def training_bytes_moved(self, policy, batch_per_replica):
        """Bytes moved per sample in a training step, both ways; kernels once per batch."""
        size = FLOAT32_BYTES if self.is_float32 else BYTES[policy]
        both = self.inputs + self.outputs
        if self.kernel:
            passes = (
                3 if self.passes_gradient else 2
            )  # forward, and the gradients of kernel and input
            return passes * size * (both + self.kernel_parameters / batch_per_replica)
        # Forward 2 in, 1 out; backward 4 in, 1 out. Frozen, each way 1 in, 1 out.
        normalization = 4 if self.is_frozen else 8
        return {
            "scaling": self.inputs + size * self.outputs,  # from uint8
            "pooling": size * 2 * both,
            "normalization": size * normalization * self.outputs,
            "activation": 0,
            "concatenation": size * (4 * self.outputs + 3 * self.outputs // 2),
            "loss": FLOAT32_BYTES * 4 * self.outputs + self.outputs,
        }[self.kind]

    def kept_bytes(self, policy):
        """Bytes that one sample keeps of this layer from the forward to the backward pass."""
        size = BYTES[policy]
        if self.kind == "loss":
            return self.outputs * (FLOAT32_BYTES + 1)  # the error, and which pixels are valid
        if self.is_float32:  # the head: its input is cast, its output becomes the error
            return self.inputs * FLOAT32_BYTES if size != FLOAT32_BYTES else 0
        if self.kind in ("normalization", "transposed convolution"):
            return 0  # what follows, activation or concatenation, keeps its own copy
        if self.kind == "activation":
            return self.outputs * size + self._mask_bytes(policy)
        return self.outputs * size

    def _mask_bytes(self, policy):
        """Bytes, in addition to an activation's output, that record where it was zero.

        Source: measured on a CPU with AVX-512. The fused normalization of oneDNN keeps half a byte
        per element if the channels fill its vectors, and four bytes otherwise.
        Choice: float16 is for GPUs, where it is one bit.
        """
        if policy == "mixed_float16":
            return self.outputs // 8
        vector = {"float32": 8, "mixed_bfloat16": 16}[policy]
        return self.outputs // 2 if self.channels % vector == 0 else 4 * self.outputs


@dataclass(frozen=True)
class Cost:
    """The counted cost of a UNet, per sample unless stated otherwise."""

    layers: tuple

    def with_frozen_normalization(self):
        """Returns the Cost of this UNet while its batch normalization stays as it is.

        Choice: activations count as if it learned, because TensorFlow keeps its input either way.
        """
        return Cost(
            tuple(
                dataclasses.replace(layer, is_frozen=layer.kind == "normalization")
                for layer in self.layers
            )
        )

    @property
    def parameters(self):
        """All parameters."""
        return sum(layer.parameters for layer in self.layers)

    @property
    def trainable_parameters(self):
        """Parameters that training changes."""
        return sum(layer.trainable_parameters for layer in self.layers)

    @property
    def kernel_parameters(self):
        """Parameters of all kernels, without biases."""
        return sum(layer.kernel_parameters for layer in self.layers)

    @property
    def forward_flops(self):
        """FLOPs of one forecast."""
        return sum(layer.forward_flops for layer in self.layers)

    def optimizer_flops(self, policy):
        """FLOPs of one update by Adam, once per step for any batch size."""
        each = ADAM + (UNSCALE if policy == "mixed_float16" else 0)
        return each * self.trainable_parameters

    def training_flops(self, policy, batch_per_replica):
        """FLOPs per sample of a training step: forward, backward, and its part of the update."""
        both_ways = sum(layer.training_flops for layer in self.layers)
        return both_ways + self.optimizer_flops(policy) / batch_per_replica

    def training_flops_by_kind(self, policy, batch_per_replica):
        """Returns {kind of layer, or "optimizer": FLOPs per sample of a training step}."""
        by_kind = {}
        for layer in self.layers:
            by_kind[layer.kind] = by_kind.get(layer.kind, 0) + layer.training_flops
        return by_kind | {"optimizer": self.optimizer_flops(policy) / batch_per_replica}

    @property
    def optimizer_bytes_moved(self):
        """Bytes that Adam moves in a step: reading gradients and state, writing state."""
        return 7 * FLOAT32_BYTES * self.trainable_parameters

    def training_bytes_moved(self, policy, batch_per_replica):
        """Bytes per sample that a training step moves."""
        moved = sum(layer.training_bytes_moved(policy, batch_per_replica) for layer in self.layers)
        return moved + self.optimizer_bytes_moved / batch_per_replica

    def intensity(self, policy, batch_per_replica):
        """FLOPs per byte moved in a training step."""
        return self.training_flops(policy, batch_per_replica) / self.training_bytes_moved(
            policy, batch_per_replica
        )

    def activation_bytes(self, policy):
        """Peak bytes of activations and their gradients in a training step."""
        return max(activations for activations, _ in self.backward_memory(policy))

    @property
    def state_bytes(self):
        """Bytes of parameters and of Adam's two moments, held through all of the training."""
        return FLOAT32_BYTES * (self.parameters + 2 * self.trainable_parameters)

    def step_bytes(self, policy, batch_per_replica):
        """Peak bytes by which memory grows in a training step.

        They are the activations of the batch, the gradients computed so far (float32), and the
        half-precision copies of kernels under a mixed policy. Parameters and Adam's moments, which
        exist before, are not counted.
        """
        copies = 0 if BYTES[policy] == FLOAT32_BYTES else BYTES[policy] * self.kernel_parameters
        return copies + max(
            batch_per_replica * activations + FLOAT32_BYTES * gradients
            for activations, gradients in self.backward_memory(policy)
        )

    def backward_memory(self, policy):
        """Goes backward through the layers, from the loss to the input.

        Yields:
          (bytes, gradients) at each layer. The bytes of one sample at that time: what the layers
          up to this one kept, the gradients of its output and input, and those that wait for a
          skip connection. And the number of parameters whose gradient is computed by then.
        """
        kept = sum(layer.kept_bytes(policy) for layer in self.layers)
        gradients = 0
        skips = 0  # gradients waiting for the encoder level of their skip connection
        for layer in reversed(self.layers):
            size = FLOAT32_BYTES if layer.is_float32 else BYTES[policy]
            by_output = size * layer.outputs
            by_input = size * layer.inputs if layer.passes_gradient else 0
            gradients += layer.trainable_parameters
            yield kept + skips + by_output + by_input, gradients
            if layer.kind == "concatenation":
                skips += by_input // 2
            if layer.kind == "pooling":
                skips -= by_input
            kept -= layer.kept_bytes(policy)

    def allreduce_bytes(self, fp16=False):
        """Bytes of gradients that each rank passes to the allreduce in a step.

        Variables and their gradients are float32 under every policy; only compression to float16
        halves them. The traffic depends on the algorithm: in a ring of n ranks, each sends
        2 (n - 1) / n times this.
        """
        return (2 if fp16 else FLOAT32_BYTES) * self.trainable_parameters

    def record(self, policy, batch_per_replica, fp16_allreduce=False):
        """Returns the `model` part of record.json."""
        return {
            "parameters": self.parameters,
            "trainable_parameters": self.trainable_parameters,
            "forward_flops_per_sample": self.forward_flops,
            "training_flops_per_sample": self.training_flops(policy, batch_per_replica),
            "activation_bytes_per_sample": self.activation_bytes(policy),
            "allreduce_bytes_per_step": self.allreduce_bytes(fp16_allreduce),
        }


def count_unet(grid, frames_in, frames_out, depth=4, filters=16, center_filters=None):
    """Returns the Cost of the UNet that `unet.build_unet` builds from the same sizes.

    Raises:
      InputError: as for `build_unet`.
    """
    check_sizes(grid, depth, filters, center_filters)
    if center_filters is None:
        center_filters = default_center_filters(depth, filters)
    layers = [
        LayerCost("scale_vil", "scaling", grid, frames_in, grid, frames_in, passes_gradient=False)
    ]

    def add(name, kind, side, channels, **more):
        before = layers[-1]
        layers.append(LayerCost(name, kind, side, channels, before.side, before.channels, **more))

    def add_double_conv(prefix, channels):
        side = layers[-1].side
        for number in (1, 2):
            # Nothing before the first convolution is trained, so it passes no gradient back.
            learns_below = layers[-1].kind != "scaling"
            add(
                f"{prefix}_conv_{number}",
                "convolution",
                side,
                channels,
                kernel=3,
                passes_gradient=learns_below,
            )
            add(f"{prefix}_norm_{number}", "normalization", side, channels)
            add(f"{prefix}_relu_{number}", "activation", side, channels)

    for level in range(1, depth + 1):
        channels = level_filters(level, filters)
        add_double_conv(f"encoder_{level}", channels)
        add(f"encoder_{level}_pool", "pooling", grid // 2**level, channels)
    add_double_conv("center", center_filters)
    for level in range(depth, 0, -1):
        channels, side = level_filters(level, filters), grid // 2 ** (level - 1)
        add(f"decoder_{level}_upsample", "transposed convolution", side, channels, kernel=2)
        layers.append(
            LayerCost(
                f"decoder_{level}_concatenate",
                "concatenation",
                side,
                2 * channels,
                side,
                2 * channels,
            )
        )
        add(f"decoder_{level}_norm", "normalization", side, 2 * channels)
        add(f"decoder_{level}_relu", "activation", side, 2 * channels)
        add_double_conv(f"decoder_{level}", channels)
    add("head", "convolution", grid, frames_out, kernel=1, is_float32=True)
    add("loss", "loss", grid, frames_out, is_float32=True)
    return Cost(tuple(layers))
