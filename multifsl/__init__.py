"""multifsl: learn new classes of images, voices and texts from a handful of examples.

The public names are imported when they are first used, so that `import multifsl` stays fast.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

_HOMES = {
    "AdaptationMethod": "adaptation",
    "Batch": "episode",
    "Comparison": "comparison",
    "Episode": "episode",
    "EpisodeSampler": "episode",
    "Encoder": "encoder",
    "EmbeddingMethod": "method",
    "Evaluation": "evaluation",
    "FewShotClassifier": "classifier",
    "Items": "task",
    "Method": "method",
    "MultifslError": "errors",
    "Output": "method",
    "Task": "task",
    "TransductiveMethod": "method",
    "build": "registry",
    "compare": "comparison",
    "contrastive_loss": "functional",
    "evaluate": "evaluation",
    "load_run": "checkpoint",
    "train": "training",
}
__all__ = [
    "AdaptationMethod",
    "Batch",
    "Comparison",
    "EmbeddingMethod",
    "Encoder",
    "Episode",
    "EpisodeSampler",
    "Evaluation",
    "FewShotClassifier",
    "Items",
    "Method",
    "MultifslError",
    "Output",
    "Task",
    "TransductiveMethod",
    "__version__",
    "build",
    "compare",
    "contrastive_loss",
    "evaluate",
    "load_run",
    "train",
]

if TYPE_CHECKING:
    from multifsl.adaptation import AdaptationMethod
    from multifsl.checkpoint import load_run
    from multifsl.classifier import FewShotClassifier
    from multifsl.comparison import Comparison, compare
    from multifsl.encoder import Encoder
    from multifsl.episode import Batch, Episode, EpisodeSampler
    from multifsl.errors import MultifslError
    from multifsl.evaluation import Evaluation, evaluate
    from multifsl.functional import contrastive_loss
    from multifsl.method import EmbeddingMethod, Method, Output, TransductiveMethod
    from multifsl.registry import build
    from multifsl.task import Items, Task
    from multifsl.training import train


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'multifsl' has no attribute {name!r}")
    return getattr(import_module(f"multifsl.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return sorted(__all__)
