"""A norm of one's own: batch norm with the mean absolute deviation in place of the standard deviation.

    d = x - mean(x);  s = mean(|d|) + eps;  xhat = d / s;  y = gamma * xhat + beta

as in Wu et al., "L1-Norm Batch Normalization for Efficient Training of Deep Neural Networks", 2018. What a layer
needs: a `forward` that keeps what `backward` will want, a `backward` that adds to the parameters' gradients and
returns dx. The gradient is checked against finite differences before it is trusted. Run it: python examples/own_norm.py
"""

import numpy as np
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

from fastnorm import nn, optim

EPOCHS, BATCH = 15, 64


class L1BatchNorm1d(nn.Module):
    """x: (N, C). Running statistics as in nn.BatchNorm1d."""

    def __init__(self, features, eps=1e-5, momentum=0.1, dtype=np.float32):
        self.weight, self.bias = nn.Parameter(np.ones(features, dtype)), nn.Parameter(np.zeros(features, dtype))
        self.register_buffer("running_mean", np.zeros(features, dtype))
        self.register_buffer("running_scale", np.ones(features, dtype))
        self.eps, self.momentum = eps, momentum

    def forward(self, x):
        if self.training:
            mean = x.mean(axis=0)
            scale = np.abs(x - mean).mean(axis=0) + self.eps
            self.running_mean += self.momentum * (mean - self.running_mean)
            self.running_scale += self.momentum * (scale - self.running_scale)
        else:
            mean, scale = self.running_mean, self.running_scale
        xhat = (x - mean) / scale
        self.save_for_backward((xhat, scale, self.training))
        return self.weight.data * xhat + self.bias.data

    def backward(self, dy):
        xhat, scale, training = self.saved_for_backward()
        self.weight.accumulate((dy * xhat).sum(axis=0))
        self.bias.accumulate(dy.sum(axis=0))
        g = dy * self.weight.data
        if not training:
            return g / scale
        # s depends on x through |d|: ds/dx_i = (sign_i - mean(sign)) / n.
        sign = np.sign(xhat)
        return (g - g.mean(axis=0) - (sign - sign.mean(axis=0)) * (g * xhat).mean(axis=0)) / scale


def check_gradient(layer, x, step=1e-6):
    """The largest relative difference between backward and central differences, on random dy, in float64."""
    rng = np.random.default_rng(1)
    dy = rng.standard_normal(x.shape)
    layer(x)
    dx = layer.backward(dy)
    numeric = np.empty_like(x)
    for index in np.ndindex(*x.shape):
        moved = x.copy()
        moved[index] += step
        above = np.sum(layer(moved) * dy)
        moved[index] -= 2 * step
        numeric[index] = (above - np.sum(layer(moved) * dy)) / (2 * step)
    return np.abs(dx - numeric).max() / np.abs(numeric).max()


error = check_gradient(L1BatchNorm1d(3, dtype=np.float64), np.random.default_rng(0).standard_normal((7, 3)) * 2 + 5)
print(f"gradient differs from finite differences by {error:.1e}")

x, y = load_digits(return_X_y=True)
x_train, x_test, y_train, y_test = train_test_split(
    x.astype(np.float32) / 16, y, test_size=0.2, stratify=y, random_state=0
)
nn.manual_seed(0)
model = nn.Sequential(
    nn.Linear(64, 128, bias=False), L1BatchNorm1d(128), nn.ReLU(),
    nn.Linear(128, 128, bias=False), L1BatchNorm1d(128), nn.ReLU(),
    nn.Linear(128, 10),
)  # fmt: skip
criterion, optimizer = nn.CrossEntropyLoss(), optim.Adam(model.parameters(), lr=3e-3)
rng = np.random.default_rng(0)
for _ in range(EPOCHS):
    for chosen in np.array_split(rng.permutation(len(x_train)), len(x_train) // BATCH):
        loss = criterion(model(x_train[chosen]), y_train[chosen])
        model.zero_grad()
        model.backward(criterion.backward())
        optimizer.step()
accuracy = np.mean(model.eval()(x_test).argmax(axis=1) == y_test)
print(f"loss of the last batch {float(loss):.4f}, test accuracy {accuracy:.2%}")
