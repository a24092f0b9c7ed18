"""Prints the cost of a model, layer by layer, without building it.

    python experiments/cost.py --depth 4 --filters 32

A multiply-add is two FLOPs. The bytes moved are those of an ideal memory: each operation reads its
inputs and writes its outputs once, and kernels and the optimizer's state move once per batch.
Intensity is FLOPs per byte moved. No GPU is searched for: the precision `auto` is that of this CPU.
"""

import dataclasses

from keras_nowcast.config import SIZE, RunConfig, names_of
from keras_nowcast.flags import Parser, add_field
from keras_nowcast.process import run_script
from keras_nowcast.text_table import aligned

FLAGS = (*names_of(SIZE), "grid", "precision", "batch_per_replica", "fp16_allreduce")
STORED_GRID = 384
HEADER = (
    "layer",
    "kind",
    "output",
    "parameters",
    "forward MFLOP",
    "training MFLOP",
    "moved MiB",
    "kept MiB",
    "FLOP/byte",
)
MIB = 2**20


def main():
    parser = Parser(description=__doc__)
    for field in dataclasses.fields(RunConfig):
        if field.name in FLAGS:
            add_field(parser, field)
    config = RunConfig(**vars(parser.parse_args()))

    from keras_nowcast.model.cost import count_unet
    from keras_nowcast.model.precision import choose_precision
    from keras_nowcast.vil import FRAMES_IN, FRAMES_OUT

    policy, reason = choose_precision(config.precision, gpus=())
    grid = config.grid or STORED_GRID
    cost = count_unet(grid, FRAMES_IN, FRAMES_OUT, *config.sizes)
    print(f"{policy} ({reason}), grid {grid}; values per sample\n")
    print_layers(cost, policy, config.batch_per_replica)
    print()
    print_totals(cost, policy, config.batch_per_replica, config.fp16_allreduce)


def print_layers(cost, policy, batch):
    """Prints one row per layer."""
    rows = [HEADER]
    for layer in cost.layers:
        moved = layer.training_bytes_moved(policy, batch)
        rows.append(
            (
                layer.name,
                layer.kind,
                f"{layer.side}x{layer.side}x{layer.channels}",
                f"{layer.parameters:,}",
                f"{layer.forward_flops / 1e6:,.1f}",
                f"{layer.training_flops / 1e6:,.1f}",
                f"{moved / MIB:,.2f}",
                f"{layer.kept_bytes(policy) / MIB:,.2f}",
                f"{layer.training_flops / moved:,.1f}" if moved else "",
            )
        )
    print(aligned(rows, left=2))


def print_totals(cost, policy, batch, fp16_allreduce):
    """Prints the sums, the percentage of each kind of layer, and the memory of a step."""
    from keras_nowcast.model.cost import BYTES

    training = cost.training_flops(policy, batch)
    lines = {
        "parameters": f"{cost.parameters:,}, {cost.trainable_parameters:,} of them trainable",
        "forward": f"{cost.forward_flops / 1e9:,.3f} GFLOP per sample",
        "training": f"{training / 1e9:,.3f} GFLOP per sample, including 1/{batch} of an update",
        "moved": f"{cost.training_bytes_moved(policy, batch) / MIB:,.1f} MiB per sample",
        "intensity": f"{cost.intensity(policy, batch):,.1f} FLOP/byte",
        "allreduce": f"{cost.allreduce_bytes(fp16_allreduce) / MIB:,.1f} MiB per step and process",
    }
    for each in BYTES:
        activations, step = cost.activation_bytes(each), cost.step_bytes(each, batch)
        lines[f"memory, {each}"] = (
            f"{activations / MIB:,.1f} MiB of activations per sample; a step of {batch} adds "
            f"{step / MIB:,.1f} MiB to {cost.state_bytes / MIB:,.1f} MiB of parameters and moments"
        )
    print(aligned(lines.items(), left=2))
    print("\ntraining FLOPs by kind of layer")
    kinds = cost.training_flops_by_kind(policy, batch)
    print(aligned([(k, f"{100 * f / training:.2f}%") for k, f in kinds.items()], left=1))


if __name__ == "__main__":
    run_script(main)
