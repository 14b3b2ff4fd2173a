"""A convolutional network on handwritten digits with layers: torch's names, NumPy's arrays, no framework.

Convolutions before a batch norm take bias=False. At the end the norms are folded into the convolutions, which leaves
the same function with fewer steps. Run it: python examples/cnn_layers.py
"""

import numpy as np
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

from fastnorm import nn, optim

EPOCHS, BATCH = 12, 64

digits = load_digits()
x_train, x_test, y_train, y_test = train_test_split(
    digits.images[:, None].astype(np.float32) / 16, digits.target, test_size=0.2, stratify=digits.target, random_state=0
)

nn.manual_seed(0)
model = nn.Sequential(
    nn.Conv2d(1, 16, 3, padding=1, bias=False),
    nn.BatchNorm2d(16, activation="relu"),
    nn.Conv2d(16, 32, 3, padding=1, bias=False),
    nn.BatchNorm2d(32, activation="relu"),
    nn.MaxPool2d(2),
    nn.Flatten(),
    nn.Linear(32 * 4 * 4, 10),
)
criterion = nn.CrossEntropyLoss()
optimizer = optim.Adam(model.parameters(), lr=3e-3)
schedule = optim.CosineAnnealingLR(optimizer, T_max=EPOCHS)

rng = np.random.default_rng(0)
for _ in range(EPOCHS):
    model.train()
    for chosen in np.array_split(rng.permutation(len(x_train)), len(x_train) // BATCH):
        loss = criterion(model(x_train[chosen]), y_train[chosen])
        model.zero_grad()
        model.backward(criterion.backward())
        optimizer.step()
    schedule.step()

model.eval()
with nn.no_grad():
    logits = model(x_test)
print(f"loss of the last batch {float(loss):.4f}, test accuracy {np.mean(logits.argmax(axis=1) == y_test):.2%}")

folded = nn.fold_batch_norm(model)
with nn.no_grad():
    difference = np.abs(folded(x_test) - logits).max()
print(f"folded into the convolutions: {len(list(folded.modules())) - 1} layers, outputs differ by {difference:.1e}")

np.savez("digits_cnn.npz", **model.state_dict())  # and back: model.load_state_dict(np.load("digits_cnn.npz"))
