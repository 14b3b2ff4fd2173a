"""A fully connected network on handwritten digits with functions only: every forward and backward call is in sight.

Each hidden layer is product, batch norm, ReLU (fused into the norm). The products have no bias, because the norm would
remove it. Run it: python examples/mlp_functions.py
"""

import numpy as np
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

import fastnorm as fn

SIZES, EPOCHS, BATCH, RATE, MOMENTUM = (64, 128, 128), 15, 64, 0.1, 0.9

x, y = load_digits(return_X_y=True)
x_train, x_test, y_train, y_test = train_test_split(
    x.astype(np.float32) / 16, y, test_size=0.2, stratify=y, random_state=0
)

rng = np.random.default_rng(0)
f32 = np.float32
layers = [
    {
        "w": (rng.standard_normal((n, m)) * np.sqrt(2 / n)).astype(f32),
        "gamma": np.ones(m, f32),
        "beta": np.zeros(m, f32),
        "mean": np.zeros(m, f32),
        "var": np.ones(m, f32),
    }
    for n, m in zip(SIZES[:-1], SIZES[1:], strict=True)
]
w_out = (rng.standard_normal((SIZES[-1], 10)) / np.sqrt(SIZES[-1])).astype(f32)
b_out = np.zeros(10, f32)
learned = [layer[name] for layer in layers for name in ("w", "gamma", "beta")] + [w_out, b_out]
velocity = [np.zeros_like(p) for p in learned]

for _ in range(EPOCHS):
    for chosen in np.array_split(rng.permutation(len(x_train)), len(x_train) // BATCH):
        # Forward: keep each product's input and each norm's context.
        h, kept = x_train[chosen], []
        for layer in layers:
            a, before = h @ layer["w"], h
            h, ctx = fn.batch_norm_forward(
                a, layer["mean"], layer["var"], layer["gamma"], layer["beta"], training=True, activation="relu"
            )
            kept.append((before, ctx))
        loss, ctx_loss = fn.cross_entropy_forward(h @ w_out + b_out, y_train[chosen])

        # Backward: the same steps in reverse order.
        (dlogits,) = fn.cross_entropy_backward(1.0, ctx_loss)
        gradients = [h.T @ dlogits, dlogits.sum(axis=0)]
        dh = dlogits @ w_out.T
        for layer, (before, ctx) in zip(reversed(layers), reversed(kept), strict=True):
            da, dgamma, dbeta = fn.batch_norm_backward(dh, ctx)
            gradients = [before.T @ da, dgamma, dbeta, *gradients]
            dh = da @ layer["w"].T

        for p, v, g in zip(learned, velocity, gradients, strict=True):
            v *= MOMENTUM
            v += g
            p -= RATE * v
    RATE *= 0.8

# Evaluation: the running statistics take the place of the batch's own.
h = x_test
for layer in layers:
    h = fn.batch_norm(h @ layer["w"], layer["mean"], layer["var"], layer["gamma"], layer["beta"], activation="relu")
accuracy = np.mean((h @ w_out + b_out).argmax(axis=1) == y_test)
print(f"loss of the last batch {float(loss):.4f}, test accuracy {accuracy:.2%}")
