//! Setting up SoftHSM2: for `strongroom dev`, and for build.rs, which includes
//! this file, so that it uses nothing but cryptoki and std.

use std::error::Error;
use std::path::{Path, PathBuf};

use cryptoki::context::{CInitializeArgs, CInitializeFlags, Pkcs11};
use cryptoki::session::UserType;
use cryptoki::types::AuthPin;

/// Names libsofthsm2.so where it is in no usual place.
pub const LIBRARY_VARIABLE: &str = "STRONGROOM_SOFTHSM2_LIBRARY";

/// Names the configuration file that the library reads in C_Initialize.
pub const CONFIGURATION_VARIABLE: &str = "SOFTHSM2_CONF";

/// What to do where SoftHSM2 is not installed.
pub const INSTALL_HINT: &str = "install SoftHSM2 (Debian, Ubuntu: apt install softhsm2; Fedora: dnf install softhsm; \
     macOS: brew install softhsm) or name the library in STRONGROOM_SOFTHSM2_LIBRARY";

/// Debian and Ubuntu, Fedora, Arch, Homebrew, and a build from source.
const USUAL_PLACES: &[&str] = &[
    "/usr/lib/softhsm/libsofthsm2.so",
    "/usr/lib/x86_64-linux-gnu/softhsm/libsofthsm2.so",
    "/usr/lib/aarch64-linux-gnu/softhsm/libsofthsm2.so",
    "/usr/lib64/pkcs11/libsofthsm2.so",
    "/usr/lib64/softhsm/libsofthsm2.so",
    "/usr/lib/pkcs11/libsofthsm2.so",
    "/opt/homebrew/lib/softhsm/libsofthsm2.so",
    "/usr/local/lib/softhsm/libsofthsm2.so",
];

/// The file libsofthsm2.so: the environment variable's, else the first of the
/// usual places; None where SoftHSM2 is not installed.
pub fn library() -> Option<PathBuf> {
    match std::env::var_os(LIBRARY_VARIABLE) {
        Some(path) => Some(PathBuf::from(path)).filter(|path| path.is_file()),
        None => USUAL_PLACES.iter().map(PathBuf::from).find(|path| path.is_file()),
    }
}

/// Writes a softhsm2.conf for the token folder `tokens`, which is made where
/// it is not there yet.
pub fn write_configuration(configuration: &Path, tokens: &Path) -> std::io::Result<()> {
    std::fs::create_dir_all(tokens)?;
    write_configuration_only(configuration, tokens)
}

/// The same for a folder that may have been taken away: it is not made.
pub fn write_configuration_only(configuration: &Path, tokens: &Path) -> std::io::Result<()> {
    let text = format!(
        "directories.tokendir = {}\nobjectstore.backend = file\nlog.level = ERROR\nslots.removable = false\n",
        tokens.display()
    );
    std::fs::write(configuration, text)
}

/// Initialises the empty slot that SoftHSM2 always shows, and returns the new
/// token's serial number. The caller has set [`CONFIGURATION_VARIABLE`], and
/// nobody else in the process has initialised `library`.
pub fn initialise_token(
    library: &Path,
    label: &str,
    so_pin: &str,
    user_pin: &str,
) -> Result<String, Box<dyn Error + Send + Sync>> {
    let module = Pkcs11::new(library)?;
    module.initialize(CInitializeArgs::new(CInitializeFlags::OS_LOCKING_OK))?;
    let serial = initialise_first_free_slot(&module, label, &AuthPin::new(so_pin.into()), user_pin);
    module.finalize()?;
    serial
}

fn initialise_first_free_slot(
    module: &Pkcs11,
    label: &str,
    so_pin: &AuthPin,
    user_pin: &str,
) -> Result<String, Box<dyn Error + Send + Sync>> {
    let mut slots = module.get_all_slots()?.into_iter();
    let slot = slots
        .find(|slot| module.get_token_info(*slot).is_ok_and(|token| !token.token_initialized()))
        .ok_or("SoftHSM2 shows no slot that is free for a new token")?;
    module.init_token(slot, so_pin, label)?;
    let session = module.open_rw_session(slot)?;
    session.login(UserType::So, Some(so_pin))?;
    session.init_pin(&AuthPin::new(user_pin.into()))?;
    session.logout()?;
    Ok(module.get_token_info(slot)?.serial_number().trim().to_owned())
}
