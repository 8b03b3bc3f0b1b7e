"""A U-Net of one's own, pictures with masks, a training loop of one's own: cut by `pd.deploy`."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import nn
from torch.nn import functional
from torch.utils.data import DataLoader, TensorDataset

import pydeploy as pd


class UNet(nn.Module):
    def __init__(self, width: int = 32) -> None:
        super().__init__()
        self.down1, self.down2 = self.pair(3, width), self.pair(width, 2 * width)
        self.up, self.last = nn.ConvTranspose2d(2 * width, width, 2, 2), self.pair(2 * width, width)
        self.pool, self.mask = nn.MaxPool2d(2), nn.Conv2d(width, 1, 1)

    @staticmethod
    def pair(cin: int, cout: int) -> nn.Sequential:
        layers: list[nn.Module] = []
        for given in (cin, cout):
            layers += [nn.Conv2d(given, cout, 3, padding=1, bias=False), nn.BatchNorm2d(cout), nn.ReLU()]
        return nn.Sequential(*layers)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        fine = self.down1(x)
        coarse = self.down2(self.pool(fine))
        return self.mask(self.last(torch.cat([self.up(coarse), fine], 1)))


def pictures(count: int, seed: int) -> TensorDataset:
    """A bright disc on noise, and where it is."""
    draw = torch.Generator().manual_seed(seed)
    y, x = torch.meshgrid(torch.arange(32.0), torch.arange(32.0), indexing="ij")
    cy, cx = (torch.rand(count, 1, 1, generator=draw) * 20 + 6 for _ in range(2))
    radius = torch.rand(count, 1, 1, generator=draw) * 4 + 3
    masks = ((y - cy) ** 2 + (x - cx) ** 2 < radius**2).float()[:, None]
    return TensorDataset(torch.randn(count, 3, 32, 32, generator=draw) + 1.5 * masks, masks)


def trained(module: nn.Module, loader: DataLoader, epochs: int) -> nn.Module:
    optimizer = torch.optim.Adam(module.parameters(), 3e-3)
    module.train()
    for _ in range(epochs):
        for x, mask in loader:
            optimizer.zero_grad()
            functional.binary_cross_entropy_with_logits(module(x), mask).backward()
            optimizer.step()
    return module.eval()


def main() -> None:
    torch.manual_seed(0)
    loader, test = DataLoader(pictures(128, 0), 16, shuffle=True), pictures(32, 1)
    model = trained(UNet(), loader, epochs=3)

    def overlap(predict) -> float:
        """Intersection over union, over all pictures."""
        both = either = 0.0
        for x, mask in test:
            found, wanted = predict(x[None]) > 0, mask[None] > 0.5
            both, either = both + float((found & wanted).sum()), either + float((found | wanted).sum())
        return both / either

    result = pd.deploy(model, torch.randn(1, 3, 32, 32), target="onnxruntime:fp32", budget=0.7, scores="taylor", data=loader,
                       loss=functional.binary_cross_entropy_with_logits, evaluate=overlap, metric=pd.Metric("IoU"),
                       finetune=lambda module: trained(module, loader, epochs=2), out="out", points=2)  # fmt: skip
    dense, pruned = result.report.models.dense, result.report.models.pruned
    print(f"met: {result.met}; IoU {dense.value:.3f} -> {pruned.value:.3f}; widths {result.plan.widths}")
    assert pruned.value > 0.5
    assert Path(result.engine.path).is_file()
    assert (result.folder / "report.html").is_file()
    assert sum(p.numel() for p in result.model.parameters()) < sum(p.numel() for p in model.parameters())


if __name__ == "__main__":
    main()
