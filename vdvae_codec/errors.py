"""The exceptions of this package: one line each, saying what is wrong and where."""


class VdvaeCodecError(Exception):
    """Base of every error that a user can cause; its text is one line."""


class ConfigError(VdvaeCodecError):
    """A model's config.toml is not what this version understands."""


class ImageError(VdvaeCodecError):
    """A file is not an image that can be read or stored."""


class DeflateError(ImageError):
    """This machine packs pixels into other bytes than a file had; the pixels are whole."""


class FormatError(VdvaeCodecError):
    """A .vdz file is truncated, damaged or of an unknown version."""


class ModelError(VdvaeCodecError):
    """A model is absent, damaged, or not the one that a file names."""


class ExactnessError(ModelError):
    """Integer arithmetic is not exact: a bound is exceeded or a known answer is not met."""


class TrainingError(VdvaeCodecError):
    """A training cannot start or go on."""
