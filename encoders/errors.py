"""Expected errors of encoders: shown as one line at the command line."""


class EncoderError(ValueError):
    """Bad input to an encoder or weights that do not fit; the message says what is accepted."""


class WeightsError(EncoderError):
    """Weights that are missing, incomplete or of another model; the message names what is and what is not."""
