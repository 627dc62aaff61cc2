"""The file behind `vocab.word_list`: a word per line."""

from zhlm.errors import ConfigError
from zhlm.storage import Place, storage_errors


def word_lines(path: str) -> list[str]:
    """Its lines, empty ones included, without their ends. Raises: ConfigError for a missing file or one that is not UTF-8."""
    if not Place(path).exists():
        raise ConfigError(f"vocab: the word list {path} does not exist; correct vocab.word_list", path=path)
    with storage_errors("reading the word list", path):
        try:
            lines = Place(path).read_text().removeprefix("\ufeff").split("\n")
        except UnicodeDecodeError as error:
            raise ConfigError(f"vocab: the word list {path} is not UTF-8 at byte {error.start}; save it as UTF-8", path=path) from None
    return [line.removesuffix("\r") for line in lines]
