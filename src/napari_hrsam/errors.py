"""Every error that napari-hrsam raises on purpose.

One tree; each leaf is also the builtin error that fits it, so ``except ValueError`` works too::

    HRSAMError
    ├── ShapeError             ValueError          an array of the wrong shape
    ├── ImageError             ValueError          an image that cannot be annotated as it is
    ├── ImageReadError         OSError             pixels that cannot be read or fetched
    ├── PromptError            ValueError          a click or box that is no place in the image
    ├── ConfigError            ValueError          a model or training setting out of range
    ├── CheckpointError        ValueError          a weight file damaged or for another model
    ├── WeightsNotFoundError   FileNotFoundError   no weight file where one was looked for
    ├── DownloadError          OSError             weights that could not be fetched
    ├── MissingExtraError      ImportError         an optional package that is not installed
    ├── DataError              ValueError          an unusable training or evaluation data set
    ├── SessionError           RuntimeError        a step that the session cannot take now
    ├── LabelsError            ValueError          a label image that cannot take the object
    └── EmbeddingsError        OSError             embeddings that cannot be kept in a folder

Every message says what was expected, what came, and what to do about it.
"""

from __future__ import annotations


class HRSAMError(Exception):
    """Base class of all errors raised by napari-hrsam."""


class ShapeError(HRSAMError, ValueError):
    """An array has the wrong shape."""


class ImageError(HRSAMError, ValueError):
    """An image has a dtype, shape, channel layout or content that cannot be shown to a model."""


class ImageReadError(HRSAMError, OSError):
    """Pixels or metadata of an image are damaged, or cannot be fetched."""


class PromptError(HRSAMError, ValueError):
    """A click or a box is malformed or lies outside the image."""


class ConfigError(HRSAMError, ValueError):
    """A setting of a model or of a run is unknown or out of range."""


class CheckpointError(HRSAMError, ValueError):
    """A weight file is damaged, unsafe, or belongs to another model."""


class WeightsNotFoundError(HRSAMError, FileNotFoundError):
    """No weight file was found where one was looked for."""


class DownloadError(HRSAMError, OSError):
    """Weights could not be fetched, or what came is not what was asked for."""


class MissingExtraError(HRSAMError, ImportError):
    """An optional package is needed and not installed."""


class DataError(HRSAMError, ValueError):
    """A training or evaluation data set is missing, damaged or malformed."""


class SessionError(HRSAMError, RuntimeError):
    """The session cannot take this step in its present state."""


class LabelsError(HRSAMError, ValueError):
    """A label image cannot hold what should be written to it."""


class EmbeddingsError(HRSAMError, OSError):
    """Embeddings cannot be kept in a folder."""
