"""Draw the beacon of a dated commitment, or read one from a file."""

from datetime import datetime
from pathlib import Path

from ..errors import AIAOError, BeaconError
from ..files.strict_json import parse_json
from .beacon import (
    DELAY,
    MAX_ANSWER,
    RELAY,
    Beacon,
    check_beacon,
    check_beacon_follows,
    fetch_drand,
    from_drand,
    round_after,
)


def draw_beacon(dated: datetime, source: str = "drand") -> Beacon:
    """The round of drand that a commitment of this date calls for, checked.

    Args:
        dated (`datetime`): the time that the commitment's timestamp states.
        source (`str`): `drand`, the address of another relay, or a file with a relay's answer.
    Raises:
        BeaconError: not drawn yet, another round, or a signature that does not hold.
    """
    if source == "drand" or source.startswith(("http://", "https://")):
        url = RELAY if source == "drand" else source
        return fetch_drand(round_after(dated + DELAY), url)
    beacon = read_beacon(Path(source))
    check_beacon_follows(beacon, dated)
    return beacon


def read_beacon(path: Path) -> Beacon:
    """A beacon from a file: as this library writes it, or as a relay answers; its signature is checked.

    Raises:
        BeaconError: no such file, no beacon, or a signature that does not hold.
    """
    try:
        if path.stat().st_size > MAX_ANSWER:
            raise BeaconError(f"'{path}' has {path.stat().st_size} bytes; a beacon has at most {MAX_ANSWER}.")
        document = parse_json(path.read_bytes(), path.name)
    except OSError as error:
        raise BeaconError(f"the beacon '{path}' cannot be read ({error.strerror}): pass a relay's answer.") from error
    except BeaconError:
        raise
    except AIAOError as error:
        raise BeaconError(f"the beacon '{path}' is none: {error}") from error
    beacon = Beacon.from_dict(document) if "version" in document else from_drand(document)
    check_beacon(beacon)
    return beacon
