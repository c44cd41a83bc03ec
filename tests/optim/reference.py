"""The paper's rule written out once more, in float64 numpy: what every path of the package is held against."""

import numpy as np


def warmup_cosine(step: int, base_lr: float, warmup: int, total: int) -> float:
    if step < warmup:
        return base_lr * (step + 1) / warmup
    return base_lr * 0.5 * (1 + np.cos(np.pi * (step - warmup) / (total - warmup)))


class ReferenceAdam:
    """Adam (or AdamW) on one array, followed by the review step of DESIGN section 1."""

    def __init__(self, theta, lam, lr_0, coupling, betas=(0.9, 0.999), eps=1e-8, weight_decay=0.0):
        self.theta = np.array(theta, dtype=np.float64)
        self.theta_0 = self.theta.copy()
        self.lam, self.lr_0, self.coupling = lam, lr_0, coupling
        self.betas, self.eps, self.weight_decay = betas, eps, weight_decay
        self.m, self.v, self.t = np.zeros_like(self.theta), np.zeros_like(self.theta), 0

    def step(self, grad, lr):
        grad = np.asarray(grad, dtype=np.float64)
        self.t += 1
        b1, b2 = self.betas
        self.m = b1 * self.m + (1 - b1) * grad
        self.v = b2 * self.v + (1 - b2) * grad**2
        m_hat, v_hat = self.m / (1 - b1**self.t), self.v / (1 - b2**self.t)
        learned = self.theta * (1 - lr * self.weight_decay) - lr * m_hat / (np.sqrt(v_hat) + self.eps)
        w = self.lam if self.coupling == 'constant' else min(1.0, self.lam * lr / self.lr_0)
        self.theta = learned - w * (learned - self.theta_0)


class ReferenceSGD(ReferenceAdam):
    """SGD with momentum, followed by the same review step."""

    def __init__(self, *args, momentum=0.9, **kwargs):
        super().__init__(*args, **kwargs)
        self.momentum = momentum

    def step(self, grad, lr):
        self.t += 1
        grad = np.asarray(grad, dtype=np.float64) + self.weight_decay * self.theta
        self.m = grad if self.t == 1 else self.momentum * self.m + grad
        learned = self.theta - lr * self.m
        w = self.lam if self.coupling == 'constant' else min(1.0, self.lam * lr / self.lr_0)
        self.theta = learned - w * (learned - self.theta_0)
