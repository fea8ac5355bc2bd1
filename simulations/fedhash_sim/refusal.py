"""What a study file asks for and its data does not allow."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from fedhash.configuration import KeyPath, problem_at
from fedhash.errors import ConfigurationError, DataError
from fedhash_sim.settings import ResolvedStudy

__all__ = ["RefusedByDataError", "at_its_line"]


class RefusedByDataError(DataError):
    """Known only when the studies are: told with the line that can mend it.

    Attributes:
        place: Of that line, as a key path of the study file.
    """

    def __init__(self, place: KeyPath, message: str) -> None:
        super().__init__(message)
        self.place = place


@contextmanager
def at_its_line(study: ResolvedStudy, seed: int | None = None) -> Iterator[None]:
    """Tell what the data refuses with the study's line, and with the seed that it depends on.

    Raises:
        ConfigurationError: For a RefusedByDataError; it names the line.
        DataError: The same of a study that was read from no file, and for any other DataError.
    """
    of_seed = "" if seed is None else f"seed {seed}: "
    try:
        yield
    except RefusedByDataError as error:
        message = f"{of_seed}{error}"
        if study.file is None:
            raise DataError(message) from error
        problem = problem_at(study.file, error.place, message, study.overrides)
        raise ConfigurationError([problem]) from error
    except DataError as error:
        if seed is None:
            raise
        raise DataError(f"{of_seed}{error}") from error
