"""`multifsl list` and `multifsl cache`: what there is to use, and what is kept."""

from typing import Annotated, Literal

import typer

from multifsl.commands.shared import Debug, Json, Plugin, count
from multifsl.terminal import show_table, write_json

# how what is listed is ordered and called
_ORDER = {g: i for i, g in enumerate(("", "image", "speech", "text", "metric", "memory", "optimisation", "transfer"))}
_SHOWN = {"memory": "model (memory)"}


def list_(
    kind: Annotated[
        Literal["encoders", "methods", "tasks", "models", "recipes"] | None, typer.Argument(help="Of one kind only.")
    ] = None,
    plugin: Plugin = None,
    debug: Debug = False,
) -> None:
    """List encoders and tasks by modality, methods by family, the models that come along, and the recipes that made them."""
    from multifsl import registry, shipped

    rows = []
    for one in registry.KINDS:
        groups = {name: registry.group(one, name) for name in registry.names(one) if kind in (None, one)}
        for name in sorted(groups, key=lambda name: (_ORDER.get(groups[name], len(_ORDER)), name)):
            shown = f"{one[:-1]}: {_SHOWN.get(groups[name], groups[name])}".removesuffix(": ")
            rows.append((shown, name, registry.arguments(one, name), registry.summary(one, name)))
    if kind in (None, "models", "recipes"):
        from multifsl.recipe import load_recipe, recipe_names

        if kind != "recipes":
            for name in shipped.model_names():
                recipe = load_recipe(name)
                told = f"{recipe.title}: {recipe.result}"
                rows.append(("model", shipped.SHIPPED + name, recipe.train["method"], told))
        if kind != "models":
            for name in recipe_names():
                recipe = load_recipe(name)
                told = f"{recipe.title}; published: {recipe.source}"
                rows.append(("recipe", name, recipe.train["method"], told))
    show_table(("kind", "name", "arguments", "what it is"), rows)


def cache(
    clear: Annotated[bool, typer.Option("--clear", help="Remove them all.")] = False,
    json_: Json = None,
    debug: Debug = False,
) -> None:
    """Show the embeddings that evaluations have kept on disk, in $MULTIFSL_CACHE or the user's cache, or remove them."""
    from datetime import datetime

    from multifsl.cache import EmbeddingCache

    kept = EmbeddingCache()
    sets = kept.sets()
    if clear:
        freed = kept.clear()
        if json_ is not None:
            write_json({"folder": str(kept.folder), "freed_bytes": freed}, json_)
        if json_ != "-":
            print(f"{kept.folder}: removed {count(len(sets), 'set')}, freed {freed / 1e6:,.1f} MB")
        return
    size = sum(one.size for one in sets)
    if json_ is not None:
        rows = [
            {**one._asdict(), "used": datetime.fromtimestamp(one.used).astimezone().isoformat(timespec="seconds")}
            for one in sets
        ]
        write_json({"folder": str(kept.folder), "bytes": size, "limit_bytes": kept.limit, "sets": rows}, json_)
    if json_ != "-":
        print(f"{kept.folder}: {count(len(sets), 'set')}, {size / 1e6:,.1f} MB of at most {kept.limit / 1e6:,.0f} MB")
        shown = []
        for one in sets:
            used = datetime.fromtimestamp(one.used).strftime("%Y-%m-%d %H:%M")
            shown.append((one.encoder, f"{one.items:,}", f"{one.width}", f"{one.size / 1e6:,.1f} MB", used))
        if shown:
            show_table(("encoder", "items", "width", "size", "last used"), shown)
