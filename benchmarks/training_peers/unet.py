"""The U-Net of micjax in PyTorch, trained on one batch: seconds a step.

    PYTHON benchmarks/training_peers/unet.py '{"width": 16, "depth": 3, "fold": 2, ...}'

The same layers, norms, resizing and optimiser as `micjax.nets.unet` and `micjax.nets.train`, and as
many weights, which it prints as well.
"""

import json
import statistics
import sys
import time

import torch
from torch import nn
from torch.nn import functional


class Block(nn.Module):
    def __init__(self, cin: int, cout: int):
        super().__init__()
        self.norm_1, self.norm_2 = nn.GroupNorm(cin // 8, cin), nn.GroupNorm(cout // 8, cout)
        self.conv_1 = nn.Conv2d(cin, cout, 3, padding=1)
        self.conv_2 = nn.Conv2d(cout, cout, 3, padding=1)
        self.past = nn.Identity() if cin == cout else nn.Conv2d(cin, cout, 1)

    def forward(self, h):
        new = self.conv_1(functional.gelu(self.norm_1(h), approximate="tanh"))
        new = self.conv_2(functional.gelu(self.norm_2(new), approximate="tanh"))
        return self.past(h) + new


class UNet(nn.Module):
    def __init__(self, width: int, depth: int, fold: int):
        super().__init__()
        widths = [width * min(2**i, 8) for i in range(depth + 1)]
        self.fold, self.depth = fold, depth
        self.first = nn.Conv2d(fold**2, width, 3, padding=1)
        down = [Block(widths[max(i - 1, 0)], widths[i]) for i in range(depth + 1)]
        up = [Block(widths[i] + widths[i + 1], widths[i]) for i in range(depth)]
        self.down, self.up = nn.ModuleList(down), nn.ModuleList(up)
        self.last_norm = nn.GroupNorm(width // 8, width)
        self.last = nn.Conv2d(width, fold**2, 3, padding=1)

    def forward(self, image):
        h, passed = self.first(functional.pixel_unshuffle(image, self.fold)), []
        for level, block in enumerate(self.down):
            h = block(h)
            if level < self.depth:
                passed.append(h)
                h = functional.avg_pool2d(h, 2)
        for level in reversed(range(self.depth)):
            h = functional.interpolate(h, scale_factor=2, mode="nearest")
            h = self.up[level](torch.cat([passed[level], h], dim=1))
        h = self.last(functional.gelu(self.last_norm(h), approximate="tanh"))
        return functional.pixel_shuffle(h, self.fold)


def main() -> None:
    asked = json.loads(sys.argv[1])
    torch.set_num_threads(asked["threads"])
    torch.manual_seed(0)
    network = UNet(asked["width"], asked["depth"], asked["fold"])
    optimiser = torch.optim.AdamW(network.parameters(), lr=1e-3, weight_decay=1e-4)
    shape = (asked["examples"], 1, asked["edge_px"], asked["edge_px"])
    seen, wanted = torch.randn(shape), torch.randn(shape)

    def step() -> None:
        optimiser.zero_grad()
        functional.mse_loss(network(seen), wanted).backward()
        torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimiser.step()

    step()
    taken = []
    for _ in range(asked["calls"]):
        begun = time.process_time()
        for _ in range(asked["steps"]):
            step()
        taken.append((time.process_time() - begun) / asked["steps"])
    weights = sum(p.numel() for p in network.parameters())
    told = {"seconds": statistics.median(taken), "all": taken, "weights": weights}
    print(json.dumps(told | {"torch": torch.__version__}))


if __name__ == "__main__":
    main()
