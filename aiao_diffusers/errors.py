"""Every error class of the library, each with the builtin base that a caller may already catch.

Misuse and broken files raise. A sound question without an answer is a value: `verify` turns `NotTestableError`, and no
other class, into the verdict `not_testable` with the message as its reason.
"""

from typing import Any


class AIAOError(Exception):
    """Base of all errors of `aiao_diffusers`; the message names the offending value and the fix."""

    also_present: tuple[Any, ...] = ()
    """What else lay beside a suspect that could not be judged, as in a report; only `verify` looks at it."""


class KeyFileError(AIAOError, ValueError):
    """A key file is missing, truncated, altered or would be overwritten."""


class KeyMismatchError(AIAOError, ValueError):
    """The record given belongs to another key."""


class RecordError(AIAOError, ValueError):
    """A record is missing, altered, of another scheme version or of another architecture."""


class ProtocolError(AIAOError, ValueError):
    """A commitment, its date, its beacon or a signed report is missing, altered or does not fit the others."""


class CommitmentError(ProtocolError):
    """A commitment is missing, altered, of another version, or lacks what the step asks for."""


class TimestampError(ProtocolError):
    """A timestamp token does not date this document, or comes from no authority that is trusted here."""


class BeaconError(ProtocolError):
    """Public randomness is malformed, unsigned, of an unknown chain, or not the round that a date calls for."""


class LeafError(ProtocolError):
    """A leaf of a key is altered, made up, or of another commitment."""


class AttestationError(ProtocolError):
    """A signed report, or the evidence folder around it, is altered, cut, of another signer, or not what a new reading gives."""


class OutputExistsError(AIAOError, FileExistsError):
    """An output path exists already and is not overwritten."""


class ConfigError(AIAOError, ValueError):
    """An argument or configuration field is out of its range."""


class SiteError(AIAOError, ValueError):
    """A denoiser has no usable attention sites, or its processors were replaced."""


class ShapeError(AIAOError, ValueError):
    """Two tensors that must agree in shape do not."""


class DataError(AIAOError, ValueError):
    """Training images or captions are missing, unreadable or of the wrong size."""


class TrainingError(AIAOError, RuntimeError):
    """Embedding stopped: a loss or weight is not finite, or a checkpoint is of another run."""


class AlreadyMarkedError(AIAOError, ValueError):
    """The model carries a record already."""


class UnsafeFileError(AIAOError, ValueError):
    """A file is not safetensors, or its header is hostile; it was not read."""


class SuspectError(AIAOError, ValueError):
    """A suspect cannot be found or is of no known kind."""


class SeveralSuspectsError(SuspectError):
    """A folder or repository holds several suspects, and no stock loader says which one is meant."""


class WrongBaseError(SuspectError):
    """A suspect's weights do not fit the base they are applied to."""


class MissingExtraError(AIAOError, ImportError):
    """A package of an optional extra is not installed."""


class HubError(AIAOError, OSError):
    """A Hub request failed in a way the user can mend."""


class HubUnreachableError(HubError):
    """The Hub did not answer, even after several attempts; the same call may succeed later."""


class ResultsError(AIAOError, OSError):
    """Results of a benchmark or a scan are missing, altered, of another version, in use by another run, or cannot be written."""


class NotTestableError(AIAOError, ValueError):
    """The question is sound but this suspect cannot answer it."""


class BudgetSpentError(NotTestableError):
    """The bytes that a scan may download are spent; a later run with a larger budget can decide this suspect."""


class LoraNotLoadedError(NotTestableError):
    """A LoRA file changed nothing in the denoiser: a verdict would describe the base alone."""


class CardError(AIAOError, ValueError):
    """A README's YAML head or markers cannot be joined with a generated card."""


class PushRefusedError(AIAOError, ValueError):
    """A push would publish a secret, weights without the mark, or the clean twin; nothing was sent."""
