"""KMS's key specs and what `cryptography` makes of their algorithms."""

from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, padding
from cryptography.hazmat.primitives.asymmetric.utils import Prehashed

RSA_SPECS = ["RSA_2048", "RSA_3072", "RSA_4096"]
RSA_SIGNING = [
    f"{scheme}_SHA_{bits}" for scheme in ("RSASSA_PSS", "RSASSA_PKCS1_V1_5") for bits in (256, 384, 512)
]
SIGNING = {
    **{spec: RSA_SIGNING for spec in RSA_SPECS},
    "ECC_NIST_P256": ["ECDSA_SHA_256"],
    "ECC_NIST_P384": ["ECDSA_SHA_384"],
    "ECC_NIST_P521": ["ECDSA_SHA_512"],
    "ECC_SECG_P256K1": ["ECDSA_SHA_256"],
    "ECC_NIST_EDWARDS25519": ["ED25519_SHA_512"],
}
SIGNING_CASES = [(spec, algorithm) for spec, algorithms in SIGNING.items() for algorithm in algorithms]
OAEP = {"RSAES_OAEP_SHA_1": hashes.SHA1(), "RSAES_OAEP_SHA_256": hashes.SHA256()}
OAEP_CASES = [(spec, algorithm) for spec in RSA_SPECS for algorithm in OAEP]
MACS = {
    "HMAC_224": ("HMAC_SHA_224", 28),
    "HMAC_256": ("HMAC_SHA_256", 32),
    "HMAC_384": ("HMAC_SHA_384", 48),
    "HMAC_512": ("HMAC_SHA_512", 64),
}
CURVES = {
    "ECC_NIST_P256": ec.SECP256R1(),
    "ECC_NIST_P384": ec.SECP384R1(),
    "ECC_NIST_P521": ec.SECP521R1(),
    "ECC_SECG_P256K1": ec.SECP256K1(),
}
AGREEMENT_SPECS = ["ECC_NIST_P256", "ECC_NIST_P384", "ECC_NIST_P521"]
# SEC 2 and FIPS 186-4: the curves' group orders.
ORDERS = {
    "ECC_NIST_P256": 0xFFFFFFFF00000000FFFFFFFFFFFFFFFFBCE6FAADA7179E84F3B9CAC2FC632551,
    "ECC_NIST_P384": int(
        "ffffffffffffffffffffffffffffffffffffffffffffffffc7634d81f4372ddf581a0db248b0a77aecec196accc52973",
        16,
    ),
    "ECC_NIST_P521": int(
        "01fffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff"
        "a51868783bf2f966b7fcc0148f709a5d03bb5c9b8899c47aebb6fb71e91386409",
        16,
    ),
    "ECC_SECG_P256K1": 0xFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFEBAAEDCE6AF48A03BBFD25E8CD0364141,
}


def hash_of(algorithm):
    """The hash of a signing algorithm; none for Ed25519, which takes the message."""
    if algorithm.startswith("ED25519"):
        return None
    return {"256": hashes.SHA256(), "384": hashes.SHA384(), "512": hashes.SHA512()}[algorithm[-3:]]


def digest(algorithm, message):
    hasher = hashes.Hash(hash_of(algorithm))
    hasher.update(message)
    return hasher.finalize()


def verify(public, algorithm, message, signature):
    """Raises InvalidSignature unless the signature is good, salt as long as the hash."""
    chosen = hash_of(algorithm)
    if chosen is None:
        public.verify(signature, message)
    elif algorithm.startswith("ECDSA"):
        public.verify(signature, digest(algorithm, message), ec.ECDSA(Prehashed(chosen)))
    elif algorithm.startswith("RSASSA_PSS"):
        public.verify(signature, message, padding.PSS(padding.MGF1(chosen), chosen.digest_size), chosen)
    else:
        public.verify(signature, message, padding.PKCS1v15(), chosen)


def oaep(algorithm, label=None):
    return padding.OAEP(padding.MGF1(OAEP[algorithm]), OAEP[algorithm], label)


def modulus_bytes(public):
    return public.key_size // 8


def flipped(data, at=-1):
    """The same bytes with one bit turned."""
    changed = bytearray(data)
    changed[at] ^= 1
    return bytes(changed)
