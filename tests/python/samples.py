"""One request of each operation that succeeds, for the tests that walk the API."""

import functools
import hashlib
import os

from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, padding
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat, load_der_public_key

ECDSA = {"signing_algorithm": "ECDSA_SHA_256", "message": hashlib.sha256(b"sample").digest()}
NO_STORE = {"custom_key_store_id": "cks-00000000000000000"}
HMAC = {"mac_algorithm": "HMAC_SHA_256", "message": b"sample message"}
GRANTEE = "arn:aws:iam::111122223333:user/sample"


# No HSM here has ML-KEM: there is no key that these could use.
WITHOUT_KEY = ("Encapsulate", "Decapsulate")


class Samples:
    """Samples' keys live as long as the session and are never changed for good."""

    def __init__(self, kms, keys):
        self.kms, self.keys = kms, keys
        self.alias = f"alias/sample/{os.urandom(8).hex()}"

    @functools.cached_property
    def prepared(self):
        """What the samples refer to."""
        kms, symmetric = self.kms, self.keys("SYMMETRIC_DEFAULT")
        signing, mac = self.keys("ECC_NIST_P256", "SIGN_VERIFY"), self.keys("HMAC_256", "GENERATE_VERIFY_MAC")
        pending = kms.create_key().key_metadata.key_id
        kms.schedule_key_deletion(key_id=pending)
        kms.create_alias(alias_name=self.alias, target_key_id=symmetric.id)
        external, imported = (kms.create_key(origin="EXTERNAL").key_metadata.key_id for _ in range(2))
        found = kms.get_parameters_for_import(
            key_id=imported, wrapping_algorithm="RSAES_OAEP_SHA_256", wrapping_key_spec="RSA_2048"
        )
        primary, replicated = (kms.create_key(multi_region=True).key_metadata.key_id for _ in range(2))
        kms.replicate_key(key_id=replicated, replica_region="eu-west-1")
        sha256 = hashes.SHA256()
        oaep = padding.OAEP(padding.MGF1(sha256), sha256, None)
        peer = ec.generate_private_key(ec.SECP256R1()).public_key()
        return {
            "symmetric": symmetric.id,
            "signing": signing.id,
            "mac": mac.id,
            "agreement": self.keys("ECC_NIST_P256", "KEY_AGREEMENT").id,
            "pending": pending,
            "external": external,
            "imported": imported,
            "import": {
                "import_token": found.import_token,
                "encrypted_key_material": load_der_public_key(found.public_key).encrypt(os.urandom(32), oaep),
                "expiration_model": "KEY_MATERIAL_DOES_NOT_EXPIRE",
            },
            "primary": primary,
            "replicated": replicated,
            "turned": kms.create_key().key_metadata.key_id,
            "peer": peer.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo),
            "policy": kms.get_key_policy(key_id=symmetric.id).policy,
            "ciphertext_blob": kms.encrypt(key_id=symmetric.id, plaintext=b"sample").ciphertext_blob,
            "signature": kms.sign(key_id=signing.id, **ECDSA).signature,
            "mac of it": kms.generate_mac(key_id=mac.id, **HMAC).mac,
        }

    def grant(self):
        """A grant that may end."""
        return self.kms.create_grant(**self["CreateGrant"]).grant_id

    def __getitem__(self, operation):
        there = self.prepared
        key, fresh = {"key_id": there["symmetric"]}, f"{self.alias}/{os.urandom(8).hex()}"
        return {
            "CreateKey": {},
            "DescribeKey": key,
            "ListKeys": {},
            "UpdateKeyDescription": {**key, "description": "sample"},
            "EnableKey": key,
            "DisableKey": key,
            "ScheduleKeyDeletion": key,
            "CancelKeyDeletion": {"key_id": there["pending"]},
            "GetPublicKey": {"key_id": there["signing"]},
            "GetKeyLastUsage": key,
            "ReplicateKey": {"key_id": there["primary"], "replica_region": "eu-west-1"},
            "UpdatePrimaryRegion": {"key_id": there["replicated"], "primary_region": "eu-west-1"},
            "Encapsulate": {**key, "encapsulation_algorithm": "ML_KEM"},
            "Decapsulate": {
                **key,
                "encapsulation_algorithm": "ML_KEM",
                "shared_secret_ciphertext_blob": b"sample",
            },
            "GetParametersForImport": {
                "key_id": there["external"],
                "wrapping_algorithm": "RSAES_OAEP_SHA_256",
                "wrapping_key_spec": "RSA_2048",
            },
            "ImportKeyMaterial": {"key_id": there["imported"], **there["import"]},
            "DeleteImportedKeyMaterial": {"key_id": there["external"]},
            "EnableKeyRotation": key,
            "DisableKeyRotation": key,
            "GetKeyRotationStatus": key,
            "RotateKeyOnDemand": {"key_id": there["turned"]},
            "ListKeyRotations": key,
            "CreateGrant": {**key, "grantee_principal": GRANTEE, "operations": ["Decrypt"]},
            "ListGrants": key,
            "ListRetirableGrants": {"retiring_principal": GRANTEE},
            "RetireGrant": {**key, "grant_id": self.grant()} if operation == "RetireGrant" else {},
            "RevokeGrant": {**key, "grant_id": self.grant()} if operation == "RevokeGrant" else {},
            "GetKeyPolicy": key,
            "PutKeyPolicy": {**key, "policy": there["policy"]},
            "ListKeyPolicies": key,
            "TagResource": {**key, "tags": [{"tag_key": "sample", "tag_value": "x"}]},
            "UntagResource": {**key, "tag_keys": ["sample"]},
            "ListResourceTags": key,
            "CreateAlias": {"alias_name": fresh, "target_key_id": there["symmetric"]},
            "UpdateAlias": {"alias_name": self.alias, "target_key_id": there["symmetric"]},
            "DeleteAlias": {"alias_name": self.alias},
            "ListAliases": {},
            "Encrypt": {**key, "plaintext": b"sample plaintext"},
            "Decrypt": {"ciphertext_blob": there["ciphertext_blob"]},
            "ReEncrypt": {
                "ciphertext_blob": there["ciphertext_blob"],
                "destination_key_id": there["symmetric"],
            },
            "GenerateDataKey": {**key, "key_spec": "AES_256"},
            "GenerateDataKeyWithoutPlaintext": {**key, "key_spec": "AES_256"},
            "GenerateDataKeyPair": {**key, "key_pair_spec": "ECC_NIST_P256"},
            "GenerateDataKeyPairWithoutPlaintext": {**key, "key_pair_spec": "ECC_NIST_P256"},
            "GenerateRandom": {"number_of_bytes": 32},
            "Sign": {"key_id": there["signing"], **ECDSA},
            "Verify": {"key_id": there["signing"], "signature": there["signature"], **ECDSA},
            "GenerateMac": {"key_id": there["mac"], **HMAC},
            "VerifyMac": {"key_id": there["mac"], "mac": there["mac of it"], **HMAC},
            "DeriveSharedSecret": {
                "key_id": there["agreement"],
                "key_agreement_algorithm": "ECDH",
                "public_key": there["peer"],
            },
            # The store and the cluster are nobody's: test_key_stores has real ones.
            "CreateCustomKeyStore": {
                "custom_key_store_name": "sample",
                "cloud_hsm_cluster_id": "cluster-aaaaaaaaaaa",
                "trust_anchor_certificate": "sample",
                "key_store_password": "sample password",
            },
            "ConnectCustomKeyStore": NO_STORE,
            "DisconnectCustomKeyStore": NO_STORE,
            "UpdateCustomKeyStore": {**NO_STORE, "new_custom_key_store_name": "sample"},
            "DeleteCustomKeyStore": NO_STORE,
            "DescribeCustomKeyStores": {},
        }[operation]
