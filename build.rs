//! Prepares what the build and its tests need.

use std::error::Error;
use std::path::{Path, PathBuf};

#[path = "src/hsm/softhsm.rs"]
#[allow(dead_code, reason = "shared with the library, which uses more of it")]
mod softhsm;

/// Tokens that really differ: a copy of a token has its original's serial.
const FIXTURE_TOKENS: usize = 4;

fn main() -> Result<(), Box<dyn Error + Send + Sync>> {
    softhsm_fixture()
}

/// Makes ready-initialised SoftHSM2 token folders, `1/tokens` to `4/tokens`
/// (labels `strongroom-test-1` to `-4`, SO PIN 12345678, user PIN 87654321),
/// which each test copies. Without SoftHSM2 the variable stays empty.
fn softhsm_fixture() -> Result<(), Box<dyn Error + Send + Sync>> {
    println!("cargo:rerun-if-changed=build.rs");
    println!("cargo:rerun-if-changed=src/hsm/softhsm.rs");
    println!("cargo:rerun-if-env-changed={}", softhsm::LIBRARY_VARIABLE);
    let Some(library) = softhsm::library() else {
        println!("cargo:warning=SoftHSM2 was not found, its tests will fail: {}", softhsm::INSTALL_HINT);
        println!("cargo:rustc-env=STRONGROOM_FIXTURE_DIR=");
        return Ok(());
    };
    println!("cargo:rerun-if-changed={}", library.display());
    let out = PathBuf::from(std::env::var_os("OUT_DIR").ok_or("cargo sets OUT_DIR")?);
    let folder = out.join("softhsm-fixture");
    if folder.exists() {
        std::fs::remove_dir_all(&folder)?;
    }
    for number in 1..=FIXTURE_TOKENS {
        fixture_token(&library, &folder.join(number.to_string()), number)?;
    }
    println!("cargo:rustc-env=STRONGROOM_FIXTURE_DIR={}", folder.display());
    Ok(())
}

fn fixture_token(library: &Path, folder: &Path, number: usize) -> Result<(), Box<dyn Error + Send + Sync>> {
    let configuration = folder.join("softhsm2.conf");
    softhsm::write_configuration(&configuration, &folder.join("tokens"))?;
    // SAFETY: the build script has one thread.
    unsafe { std::env::set_var(softhsm::CONFIGURATION_VARIABLE, &configuration) };
    softhsm::initialise_token(library, &format!("strongroom-test-{number}"), "12345678", "87654321")?;
    Ok(())
}
