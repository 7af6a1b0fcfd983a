"""What Triton's interpreter does again and again, or for nothing, is left out: same results, a third less time."""

from dataclasses import replace
from functools import cache

from triton import language
from triton.runtime import interpreter


def patch_language_once() -> None:
    """The interpreter patches its language at every call inside a kernel, too: here at the kernel's own call alone.

    That is a quarter of the time of kernels as small as the tests'. What is patched and restored stays as it was: the
    scope of the kernel's call restores what it has changed.
    """
    if not hasattr(interpreter, "_LangPatchScope"):  # another release: the tests merely take longer
        return
    patch = interpreter._patch_lang
    patched = set()

    @cache
    def languages(fn) -> frozenset[int]:
        return frozenset(id(one) for one in fn.__globals__.values() if one is language or one is language.core)

    class Scope(interpreter._LangPatchScope):
        def restore(self) -> None:
            patched.clear()
            super().restore()

    def patch_once(fn) -> Scope:
        scope = Scope()
        if languages(fn) not in patched:
            patched.add(languages(fn))
            scope._changes = patch(fn)._changes
        return scope

    interpreter._patch_lang = patch_once


def compute_no_overflows() -> None:
    """Without `debug` the interpreter computes whether integers overflow, and looks at no result."""
    builder = interpreter.interpreter_builder
    if not builder.options.debug:
        builder.options = replace(builder.options, sanitize_overflow=False)
