"""Where everything lies: peers, models, prompts and results, below one folder the user names."""

import os
import re
from dataclasses import dataclass
from pathlib import Path

# Of two levels or more, such as a peer's build left in its messages.
ABSOLUTE_FOLDERS = re.compile(r"(?<![\w$./])/(?:[\w.+@-]+/){2,}")
HERE = Path(__file__).resolve().parent
REPOSITORY = HERE.parent.parent


@dataclass(frozen=True)
class Scratch:
    root: Path

    @staticmethod
    def default_root() -> Path:
        cache = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
        return Path(cache) / "powertrain-cpu-peers"

    @property
    def models(self) -> Path:
        return self.root / "models"

    @property
    def prompts(self) -> Path:
        return self.root / "prompts"

    @property
    def logs(self) -> Path:
        return self.root / "logs"

    @property
    def llama_cpp(self) -> Path:
        return self.root / "llama.cpp"

    def llama_tool(self, name: str) -> Path:
        return self.llama_cpp / "build" / "bin" / name

    def venv(self, name: str) -> Path:
        return self.root / "venvs" / name

    def python(self, name: str) -> Path:
        return self.venv(name) / "bin" / "python"

    def packages(self, name: str) -> Path:
        """Where a venv's packages lie."""
        return next((self.venv(name) / "lib").glob("python3.*")) / "site-packages"

    def redacted(self, text: str) -> str:
        """Without paths of this machine, or of the one a peer was built on."""
        places = [(str(self.root), "$SCRATCH"), (str(REPOSITORY), "$REPOSITORY"), (str(Path.home()), "$HOME")]
        places += [(str(Path(path).resolve()), name) for path, name in places]
        for path, name in sorted(set(places), key=lambda place: -len(place[0])):
            text = text.replace(path, name)
        return ABSOLUTE_FOLDERS.sub("…/", text)
