"""The two trust domains share no code, so their exit codes are proved equal here."""

import attestation.errors
import kata_gpu.errors


def test_exit_codes_are_one_table() -> None:
    ours = {m.name: m.value for m in attestation.errors.ExitCode}
    assert ours == {m.name: m.value for m in kata_gpu.errors.ExitCode}
    assert ours == {
        "OK": 0,
        "NEGATIVE": 1,
        "USAGE": 2,
        "IN_USE": 3,
        "REBOOT_NEEDED": 4,
        "ROLLED_BACK": 5,
        "TIMEOUT": 6,
        "LOCKED": 7,
        "UNAVAILABLE": 8,
    }


def test_errors_say_what_where_expected_got() -> None:
    error = attestation.errors.Malformed(
        "truncated", "input ends early", where="report.nonce", expected="32 bytes", got=7
    )
    assert str(error) == "report.nonce: input ends early, expected 32 bytes, got 7"
