"""Networks of other people, written from their published structure: what accelerate has to recognise."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class PriorGate(nn.Module):
    """ThoraX-PriorNet's block: one pooling module per descriptor, four 1x1 convolutions, a gate, a blend, BN."""

    def __init__(self, channels: int, ratio: float = 1.0, dropout: float = 0.1) -> None:
        super().__init__()
        hidden = int(channels * ratio)
        self.avg_pool, self.max_pool = nn.AdaptiveAvgPool2d(1), nn.AdaptiveMaxPool2d(1)
        self.conv_list = nn.ModuleList(
            nn.Sequential(nn.Conv2d(channels, hidden, 1), nn.LeakyReLU(0.2)) for _ in range(4)
        )
        self.final_block = nn.Sequential(nn.Conv2d(hidden, channels, 1), nn.Sigmoid(), nn.Dropout(dropout))
        self.bn3 = nn.BatchNorm2d(channels)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        masked = mask * x
        entries = [self.avg_pool(x), self.max_pool(x), self.max_pool(masked), self.avg_pool(masked)]
        hidden = [block(entry) for block, entry in zip(self.conv_list, entries, strict=True)]
        gate = self.final_block(hidden[0] + hidden[1] + hidden[2] + hidden[3])
        return self.bn3(gate * masked + (1 - gate) * x)


class LinearGate(nn.Module):
    """The same family in other words: linear layers, reductions by method, a factored blend, two descriptors."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.inner, self.outer = nn.Linear(2 * channels, channels), nn.Linear(channels, channels)
        self.normalise = nn.BatchNorm2d(channels)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        n, c = x.size(0), x.size(1)
        masked = x.mul(mask)
        d = torch.cat([masked.view(n, c, -1).mean(-1), masked.view(n, c, -1).max(-1)[0]], 1)
        g = torch.sigmoid(self.outer(F.relu(self.inner(d)))).view(n, c, 1, 1)
        return self.normalise(x + g * (masked - x))


class PriorNet(nn.Module):
    """15 gates on one X, each before an average pool and a classifier of its own."""

    def __init__(self, channels: int = 16, heads: int = 15, dropout: float = 0.0) -> None:
        super().__init__()
        self.features = nn.Sequential(nn.Conv2d(1, channels, 5, 4, 2), nn.BatchNorm2d(channels), nn.ReLU())
        self.attention = nn.ModuleList(PriorGate(channels, dropout=dropout) for _ in range(heads))
        self.classifier = nn.ModuleList(nn.Linear(channels, 1) for _ in range(heads))

    def forward(self, image: Tensor, masks: Tensor) -> Tensor:
        x = self.features(image)
        masks = F.interpolate(masks, size=x.shape[2:], mode="bilinear", align_corners=False)
        logits = []
        for i, (attention, classifier) in enumerate(zip(self.attention, self.classifier, strict=True)):
            z = attention(x, masks[:, i : i + 1])
            z = F.adaptive_avg_pool2d(z, 1).flatten(1)
            logits.append(classifier(F.dropout(z, 0.1, training=self.training)))
        return torch.cat(logits, 1)


class PcamPool(nn.Module):
    """PCAM's pooling as it is published."""

    def forward(self, features: Tensor, logit_map: Tensor) -> Tensor:
        assert logit_map is not None
        prob = torch.sigmoid(logit_map)
        weight = prob / prob.sum(dim=2, keepdim=True).sum(dim=3, keepdim=True)
        return (features * weight).sum(dim=2, keepdim=True).sum(dim=3, keepdim=True)


class PcamNet(nn.Module):
    """PCAM's network: one 1x1 convolution per class makes the map and classifies what it pooled."""

    def __init__(self, channels: int = 16, classes: int = 5, dropout: float = 0.0) -> None:
        super().__init__()
        self.backbone = nn.Sequential(nn.Conv2d(3, channels, 5, 4, 2), nn.BatchNorm2d(channels), nn.ReLU())
        self.global_pool = PcamPool()
        self.classes, self.dropout = classes, dropout
        for k in range(classes):
            setattr(self, f"fc_{k}", nn.Conv2d(channels, 1, 1))

    def forward(self, x: Tensor) -> tuple[list[Tensor], list[Tensor]]:
        features = self.backbone(x)
        logits, maps = [], []
        for k in range(self.classes):
            classifier = getattr(self, f"fc_{k}")
            logit_map = classifier(features)
            maps.append(logit_map)
            pooled = self.global_pool(features, logit_map)
            pooled = F.dropout(pooled, self.dropout, training=self.training)
            logits.append(classifier(pooled).squeeze(-1).squeeze(-1))
        return logits, maps


class PcamAtOnce(nn.Module):
    """The same head with all classes in one convolution."""

    def __init__(self, channels: int = 16, classes: int = 5, detached: bool = False) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, channels, 5, 4, 2)
        self.head = nn.Conv2d(channels, classes, 1)
        self.detached = detached

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        x = F.relu(self.stem(x))
        p = self.head(x).sigmoid()
        weight = p / p.sum((2, 3), keepdim=True)
        if self.detached:
            weight = weight.detach()
        pooled = torch.einsum("nkhw,nchw->nkc", weight, x)
        return (pooled * self.head.weight.flatten(1)).sum(-1) + self.head.bias, p


class GateThenPcam(nn.Module):
    """A gate whose result is pooled by PCAM: one place feeds the next."""

    def __init__(self, channels: int = 8, classes: int = 3) -> None:
        super().__init__()
        self.inner, self.outer = nn.Conv2d(channels, channels, 1), nn.Conv2d(channels, channels, 1)
        self.norm = nn.BatchNorm2d(channels)
        self.head = nn.Conv2d(channels, classes, 1)

    def forward(self, x: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        masked = x * mask
        gate = self.outer(F.relu(self.inner(F.adaptive_max_pool2d(masked, 1) + x.mean((2, 3), keepdim=True)))).sigmoid()
        z = self.norm(gate * masked + (1 - gate) * x)
        maps = self.head(z)
        prob = maps.sigmoid()
        pooled = torch.einsum("nkhw,nchw->nkc", prob / prob.sum((2, 3), keepdim=True), z)
        return torch.cat([pooled.flatten(1), z.mean((2, 3))], 1), maps


class ChannelGate(nn.Module):
    """CBAM's channel attention: average and maximum through one perceptron."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        hidden = max(1, channels // 4)
        self.mlp = nn.Sequential(nn.Flatten(), nn.Linear(channels, hidden), nn.ReLU(), nn.Linear(hidden, channels))

    def forward(self, x: Tensor) -> Tensor:
        size = (x.size(2), x.size(3))
        total = self.mlp(F.avg_pool2d(x, size, stride=size)) + self.mlp(F.max_pool2d(x, size, stride=size))
        return x * torch.sigmoid(total).unsqueeze(2).unsqueeze(3).expand_as(x)


class AverageMaximum(nn.Module):
    """A classifier on global average and maximum beside each other."""

    def __init__(self, channels: int = 16, classes: int = 4) -> None:
        super().__init__()
        self.stem = nn.Conv2d(1, channels, 5, 4, 2)
        self.classifier = nn.Linear(2 * channels, classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        return self.classifier(torch.cat([x.mean((2, 3)), x.amax((2, 3))], 1))


class SqueezeExcitation(nn.Module):
    """A gate on the average alone, which is read once as it is."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.squeeze, self.gate = nn.AdaptiveAvgPool2d(1), nn.Conv2d(channels, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        return x * self.gate(self.squeeze(x)).sigmoid()
