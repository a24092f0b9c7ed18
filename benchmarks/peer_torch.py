"""The UNet in PyTorch, as its users would write it: a peer of benchmarks/peers.py.

    python peer_torch.py '{"variant": "eager", "depth": 4, ...}'

Imports nothing of keras_nowcast. Answers each line on standard input with the seconds of one step.
"""

import peer_loop
import torch
from torch import nn
from torch.nn import functional

MISSING = 255


class DoubleConvolution(nn.Sequential):
    """Two 3x3 convolutions, each with batch normalization and ReLU."""

    def __init__(self, channels, filters):
        parts = []
        for each in (channels, filters):
            parts += [
                nn.Conv2d(each, filters, 3, padding=1),
                nn.BatchNorm2d(filters, eps=1e-3, momentum=0.01),
                nn.ReLU(inplace=True),
            ]
        super().__init__(*parts)


class Up(nn.Module):
    """One level of the decoder."""

    def __init__(self, channels, filters):
        super().__init__()
        self.upsample = nn.ConvTranspose2d(channels, filters, 2, stride=2)
        self.norm = nn.BatchNorm2d(2 * filters, eps=1e-3, momentum=0.01)
        self.convolve = DoubleConvolution(2 * filters, filters)

    def forward(self, x, skip):  # noqa: D102
        x = torch.cat([self.upsample(x), skip], dim=1)
        return self.convolve(functional.relu(self.norm(x), inplace=True))


class UNet(nn.Module):
    """The network; images are (b, channel, y, x)."""

    def __init__(self, frames_in, frames_out, depth, filters, center_filters):
        super().__init__()
        widths = [filters * 2**level for level in range(depth)]
        self.encoder = nn.ModuleList(
            map(DoubleConvolution, [frames_in, *widths[:-1]], widths)  # one per level
        )
        self.center = DoubleConvolution(widths[-1], center_filters)
        below = [*widths[1:], center_filters]
        self.decoder = nn.ModuleList(map(Up, below[::-1], widths[::-1]))
        self.head = nn.Conv2d(filters, frames_out, 1)

    def forward(self, x):  # noqa: D102
        skips = []
        for level in self.encoder:
            x = level(x)
            skips.append(x)
            x = functional.max_pool2d(x, 2)
        x = self.center(x)
        for level in self.decoder:
            x = level(x, skips.pop())
        return self.head(x)


def build_step(settings):
    """Returns (a function that trains one step and returns its loss, number of parameters)."""
    torch.manual_seed(0)
    sizes = [settings[each] for each in ("depth", "filters", "center_filters")]
    model = UNet(settings["frames_in"], settings["frames_out"], *sizes)
    is_last = settings["variant"] != "eager"
    if is_last:
        model = model.to(memory_format=torch.channels_last)
    optimizer = torch.optim.Adam(model.parameters(), lr=settings["learning_rate"], fused=True)
    parameters = sum(each.numel() for each in model.parameters())
    run = torch.compile(model) if settings["variant"] == "compiled" else model
    shape = (settings["batch"], settings["grid"], settings["grid"])
    # As our input has them: frames last in memory, which is PyTorch's format channels_last.
    x = torch.randint(0, MISSING, (*shape, settings["frames_in"]), dtype=torch.uint8)
    y = torch.randint(0, MISSING, (*shape, settings["frames_out"]), dtype=torch.uint8)
    x, y = (each.permute(0, 3, 1, 2) for each in (x, y))
    mean, scale = settings["mean"], settings["scale"]

    def step():
        codes = x.float()
        codes = torch.where(codes == MISSING, 0.0, codes)
        inputs = (codes - mean) / scale
        if not is_last:
            inputs = inputs.contiguous()
        valid = y != MISSING
        error = torch.where(valid, run(inputs) - (y.float() - mean) / scale, 0.0)
        loss = error.square().sum() / valid.sum()
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        return loss.item()

    return step, parameters


def main():
    settings = peer_loop.settings()
    torch.set_num_threads(settings["threads"])
    step, parameters = build_step(settings)
    step()
    peer_loop.take_steps(torch.__version__, parameters, lambda: peer_loop.timed(step))


if __name__ == "__main__":
    main()
