"""The learning methods of the product by name, for those who must not load what they do (`cp_train/methods`)."""

from services.errors import InputError

METHODS = (
    "ewc_dc_kv",
    "ewc_dc",
    "ewc",
    "dsc",
    "dsc_ewc",
    "dsc_ewc_dc",
    "kv",
    "dsc_kv",
    "dsc_ewc_dc_kv",
    "clora_shared",
    "textual_inversion",
    "finetune",
)


def check_method(name: str) -> str:
    """Return the name of a method that a lineage can be learned by, else raise `InputError` naming those there are."""
    if name not in METHODS:
        raise no_such_method(name)
    return name


def no_such_method(name: str) -> InputError:
    """The error for a method that there is not."""
    return InputError(f"method: there is no {name!r}; choose one of {', '.join(METHODS)}.", param="method")
