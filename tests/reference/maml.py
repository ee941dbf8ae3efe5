"""Finn et al. 2017."""

VARIANTS = [
    "maml",
    "maml(head='shared', first_order=True)",
    "maml(batch_norm='query', learn_lr='step', steps=2)",
    "maml(batch_norm='per_step', steps=2)",
    "maml(trainable='last', vectorize=True, steps=2)",
]
STEPS = 100
