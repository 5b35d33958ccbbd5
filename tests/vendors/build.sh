#!/usr/bin/env bash
# Builds the modules of other vendors that the tests load, into target/vendors:
# kryoptic, with an OpenSSL of its own, whose source the crate openssl-src has.
# Takes ten minutes, once: CI finds it in the cache folder afterwards.
set -euo pipefail
cd "$(dirname "$0")/kryoptic"
target=$(realpath -m ../../../target/vendors)
mkdir -p "$target"

if command -v apt-get >/dev/null && [ "$(id -u)" = 0 ]; then
  missing=$(for package in libclang-dev libsqlite3-dev perl make gcc; do
    dpkg -s $package >/dev/null 2>&1 || echo $package
  done)
  [ -z "$missing" ] || { apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq $missing; }
fi

if [ ! -f "$target/openssl/libcrypto.a" ]; then
  source=$(cargo metadata --locked --format-version 1 | python3 -c '
import json, os, sys
packages = json.load(sys.stdin)["packages"]
print(next(os.path.dirname(p["manifest_path"]) for p in packages if p["name"] == "openssl-src"))')
  rm -rf "$target/openssl"
  cp -r "$source/openssl" "$target/openssl"
  (
    cd "$target/openssl"
    chmod +x Configure
    ./Configure no-shared no-apps no-tests no-docs no-deprecated no-atexit no-aria no-argon2 no-des no-dsa \
      no-cast no-mdc2 no-ec2m no-rc2 no-rc4 no-rc5 no-rmd160 no-seed no-sm2 no-sm3 no-sm4 no-engine no-legacy
    make build_generated
    make -j"$(nproc)" libcrypto.a
  ) >"$target/openssl.log" 2>&1 || { tail -20 "$target/openssl.log"; exit 1; }
fi
KRYOPTIC_OPENSSL_SOURCES=$target/openssl CARGO_TARGET_DIR=$target/build cargo build --locked
install -D "$target/build/debug/libkryoptic.so" "${XDG_CACHE_HOME:-$HOME/.cache}/strongroom/libkryoptic.so"
