# CuPy is absent where there is no GPU, and ships no types: for the type checker all of it is Any.
from typing import Any

def __getattr__(name: str) -> Any: ...
