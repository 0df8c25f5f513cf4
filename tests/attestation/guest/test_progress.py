"""A long run says how far it is; a short one says nothing."""

from attestation.guest.progress import EVERY_S, Progress


def test_a_line_every_ten_seconds() -> None:
    """However many chunks there are in between, and with what is done then."""
    now, said = [100.0], list[str]()
    progress = Progress(what="decrypted", total=140_000_000_000, clock=lambda: now[0], say=said.append)
    for _ in range(25):
        progress(1_000_000_000)
        now[0] += 1.0
    assert EVERY_S == 10.0
    assert said == ["decrypted: 11.0 of 140.0 GB", "decrypted: 21.0 of 140.0 GB"]


def test_a_short_run_is_silent() -> None:
    """Nothing before the first ten seconds are over."""
    said = list[str]()
    progress = Progress(what="decrypted", total=5, clock=lambda: 0.0, say=said.append)
    progress(5)
    assert (said, progress.done) == ([], 5)
