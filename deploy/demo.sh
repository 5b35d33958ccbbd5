#!/usr/bin/env bash
# The main job, from nothing: a daemon on a SoftHSM2 token, a key of each
# family, each used, every signature verified by openssl, and the events of
# just these calls. Exits 0 only if all of it worked.
set -euo pipefail
cd "$(dirname "$0")/.."

strongroom="${CARGO_TARGET_DIR:-target}/debug/strongroom"
work=$(mktemp -d)
trap 'kill "${tail:-}" "${daemon:-}" 2>/dev/null || true; wait 2>/dev/null || true; rm -rf "$work"' EXIT

step() { printf '\n\033[1m== %s\033[0m\n' "$*"; }
field() { "$strongroom" kms "${@:2}" -o raw --field "$1"; }
create() { "$strongroom" kms create-key "$@" -o raw --field KeyMetadata | sed -n 's/.*"KeyId": "\([^"]*\)".*/\1/p'; }
same() { cmp "$1" "$2" && echo "  the same: $(basename "$1") and $(basename "$2")"; }
public_key() { field PublicKey get-public-key --key-id "$1" > "$2"; }

step "A daemon on a new SoftHSM2 token"
"$strongroom" dev --dir "$work/dev" --grpc 127.0.0.1:0 --http 127.0.0.1:0 --aws 127.0.0.1:0 > "$work/ready" 2> "$work/log" &
daemon=$!
for _ in $(seq 300); do
  grep -q ready "$work/ready" && break
  kill -0 "$daemon" 2>/dev/null || { cat "$work/log" >&2; exit 1; }
  sleep 0.1
done
cat "$work/ready"
. "$work/dev/env"
"$strongroom" hsm list
"$strongroom" events tail --position-file "$work/position" > "$work/events" &
tail=$!
sleep 1

cd "$work"
strongroom=$(cd "$OLDPWD" && realpath "$strongroom")
printf 'attack at dawn' > message
openssl dgst -sha256 -binary message > digest

step "SYMMETRIC_DEFAULT: encrypt, decrypt, a data key"
key=$(create --description demo)
"$strongroom" kms create-alias --alias-name alias/demo --target-key-id "$key" > /dev/null
field CiphertextBlob encrypt --key-id alias/demo --plaintext fileb://message --encryption-context team=demo > sealed
field Plaintext decrypt --ciphertext-blob fileb://sealed --encryption-context team=demo > opened
same message opened
"$strongroom" kms generate-data-key-without-plaintext --key-id "$key" --key-spec AES_256 > /dev/null

step "RSA_2048: openssl encrypts, the HSM decrypts"
key=$(create --key-spec RSA_2048 --key-usage ENCRYPT_DECRYPT)
public_key "$key" rsa.der
openssl pkeyutl -encrypt -pubin -keyform DER -inkey rsa.der -in message -out sealed \
  -pkeyopt rsa_padding_mode:oaep -pkeyopt rsa_oaep_md:sha256 -pkeyopt rsa_mgf1_md:sha256
field Plaintext decrypt --key-id "$key" --encryption-algorithm RSAES_OAEP_SHA_256 --ciphertext-blob fileb://sealed > opened
same message opened

step "RSA_2048: the HSM signs, openssl verifies"
key=$(create --key-spec RSA_2048 --key-usage SIGN_VERIFY)
public_key "$key" rsa.der
field Signature sign --key-id "$key" --signing-algorithm RSASSA_PSS_SHA_256 --message fileb://message > signature
openssl dgst -sha256 -verify rsa.der -keyform DER -signature signature \
  -sigopt rsa_padding_mode:pss -sigopt rsa_pss_saltlen:digest message

for spec in ECC_NIST_P256 ECC_SECG_P256K1; do
  step "$spec: the HSM signs, openssl verifies"
  key=$(create --key-spec "$spec" --key-usage SIGN_VERIFY)
  public_key "$key" ec.der
  field Signature sign --key-id "$key" --signing-algorithm ECDSA_SHA_256 --message-type DIGEST --message fileb://digest > signature
  openssl dgst -sha256 -verify ec.der -keyform DER -signature signature message
done

step "ECC_NIST_EDWARDS25519: the HSM signs, openssl verifies"
key=$(create --key-spec ECC_NIST_EDWARDS25519 --key-usage SIGN_VERIFY)
public_key "$key" ed25519.der
field Signature sign --key-id "$key" --signing-algorithm ED25519_SHA_512 --message fileb://message > signature
openssl pkeyutl -verify -rawin -pubin -keyform DER -inkey ed25519.der -sigfile signature -in message

step "ECC_NIST_P384: the HSM and openssl agree on a secret"
key=$(create --key-spec ECC_NIST_P384 --key-usage KEY_AGREEMENT)
public_key "$key" ours.der
openssl ecparam -name secp384r1 -genkey -noout -out theirs.pem
openssl ec -in theirs.pem -pubout -outform DER -out theirs.der 2> /dev/null
field SharedSecret derive-shared-secret --key-id "$key" --key-agreement-algorithm ECDH --public-key fileb://theirs.der > secret.hsm
openssl pkeyutl -derive -inkey theirs.pem -peerkey ours.der -peerform DER -out secret.openssl
same secret.hsm secret.openssl

step "HMAC_256: made and verified"
key=$(create --key-spec HMAC_256 --key-usage GENERATE_VERIFY_MAC)
field Mac generate-mac --key-id "$key" --mac-algorithm HMAC_SHA_256 --message fileb://message > mac
"$strongroom" kms verify-mac --key-id "$key" --mac-algorithm HMAC_SHA_256 --message fileb://message --mac fileb://mac

step "A refused call is on the record too"
"$strongroom" kms disable-key --key-id "$key" > /dev/null
if "$strongroom" kms generate-mac --key-id "$key" --mac-algorithm HMAC_SHA_256 --message fileb://message; then
  echo "a disabled key was used" >&2
  exit 1
fi

step "The events of these calls"
sleep 1
kill "$tail"
wait "$tail" 2>/dev/null || true
cat events
grep -q DisabledException events
for name in CreateKey Encrypt Decrypt Sign GetPublicKey GenerateMac VerifyMac DeriveSharedSecret DisableKey; do
  grep -qw "$name" events || { echo "no event $name" >&2; exit 1; }
done

step "The log holds together"
"$strongroom" events verify
kill "$daemon"
wait "$daemon"
echo
echo "demo: all of it worked"
