"""Which 32 bytes may be a site's public key: a point of Ed25519 that is not of small order.

Under a key of small order anyone can sign: of the equation that a verifier checks, R = S B - h A
(RFC 8032, section 5.1.7), the part with the key takes at most eight values, whatever the message.
`cryptography` loads any 32 bytes as a key, so a roster is checked here. Keys are public; nothing
in here needs to take constant time.

    >>> key_fault(bytes.fromhex("01" + 31 * "00"))
    'is a point of small order, under which anyone can sign'
"""

from __future__ import annotations

__all__ = ["key_fault"]

_P = 2**255 - 19
_D = -121665 * pow(121666, -1, _P) % _P  # of -x^2 + y^2 = 1 + d x^2 y^2; RFC 8032, section 5.1
# Heights of the eight points of small order; an order 8 has this one and its negative. libsodium
# (crypto_core/ed25519/ref10/ed25519_ref10.c, ge25519_has_small_order) lists the same.
_ORDER_8 = 2707385501144840649318225287225658788936804267575313519463743609750303402022
_SMALL_ORDER = frozenset((0, 1, _P - 1, _ORDER_8, _P - _ORDER_8))


def key_fault(key: bytes) -> str | None:
    """What is wrong with 32 bytes as a public key, or None."""
    y = int.from_bytes(key, "little") % 2**255  # the highest bit is the sign of x
    if y >= _P:
        return "is not written as RFC 8032 writes points"
    if y in _SMALL_ORDER:
        return "is a point of small order, under which anyone can sign"
    # x^2 = (y^2 - 1) / (d y^2 + 1) has a root where the product has one; Euler's criterion
    if pow((y * y - 1) * (_D * y * y + 1), (_P - 1) // 2, _P) != 1:
        return "is no point of the curve"
    return None
