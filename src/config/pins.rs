//! PINs: from a file, a systemd credential or a terminal; never from a flag,
//! an environment variable or the configuration itself.

use std::ffi::OsString;
use std::fs::File;
use std::io::{IsTerminal, Read};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use secrecy::SecretString;
use zeroize::Zeroizing;

use super::error::Problem;
use super::settings::{Config, PinSource};

/// Longer PINs are refused: PKCS#11 tokens take at most 255 bytes or less.
const PIN_BYTES_MAX: usize = 255;

impl Config {
    /// The PIN of `[pins.NAME]`. A prompt blocks until the terminal answers.
    pub fn pin(&self, name: &str) -> Result<SecretString, Problem> {
        let source = self.pins.get(name).ok_or_else(|| {
            Problem::new(
                "the configuration".into(),
                format!("pins.{name}"),
                "is missing; add a section [pins.NAME] with file = \"PATH\", credential = \"NAME\" or prompt = true",
            )
        })?;
        match source {
            PinSource::File(path) => file(name, path),
            PinSource::Credential(id) => credential(name, id, std::env::var_os("CREDENTIALS_DIRECTORY")),
            PinSource::Prompt => prompt(name, std::io::stdin().is_terminal()),
        }
    }

    /// Why PINs of files could not be read, without reading them.
    pub fn pin_file_problems(&self) -> Vec<Problem> {
        let files = self.pins.iter().filter_map(|(name, source)| match source {
            PinSource::File(path) => Some((name, path)),
            PinSource::Credential(_) | PinSource::Prompt => None,
        });
        files.filter_map(|(name, path)| open_private(name, path).err()).collect()
    }
}

fn file(name: &str, path: &Path) -> Result<SecretString, Problem> {
    read(name, path, open_private(name, path)?)
}

/// Opens a file that its owner alone can read; what a symbolic link leads to
/// is what counts.
fn open_private(name: &str, path: &Path) -> Result<File, Problem> {
    let problem = |text: String| Problem::new(path.display().to_string(), format!("pins.{name}.file"), &text);
    let file = File::open(path).map_err(|error| {
        problem(format!(
            "cannot be read ({error}); write the PIN into it, readable by the daemon's user alone"
        ))
    })?;
    let metadata =
        file.metadata().map_err(|error| problem(format!("cannot be read ({error}); check the disk")))?;
    let mode = metadata.permissions().mode() & 0o7777;
    if mode & 0o077 != 0 {
        let path = path.display();
        return Err(problem(format!(
            "others than its owner may use it (mode {mode:04o}); run chmod 600 {path}"
        )));
    }
    Ok(file)
}

/// systemd itself lets only the service see the folder, so modes don't count.
fn credential(name: &str, id: &str, folder: Option<OsString>) -> Result<SecretString, Problem> {
    let problem =
        |source: String, text: String| Problem::new(source, format!("pins.{name}.credential"), &text);
    let remedy = format!("add LoadCredential={id}:PATH to the service's unit");
    let Some(folder) = folder else {
        return Err(problem(
            "environment variable CREDENTIALS_DIRECTORY".into(),
            format!("is not set, so this is not a systemd service with credentials; {remedy}"),
        ));
    };
    let path = PathBuf::from(folder).join(id);
    let file = File::open(&path).map_err(|error| {
        problem(path.display().to_string(), format!("cannot be read ({error}); {remedy}"))
    })?;
    read(name, &path, file)
}

fn prompt(name: &str, terminal: bool) -> Result<SecretString, Problem> {
    let problem = |text: &str| Problem::new("the terminal".into(), format!("pins.{name}.prompt"), text);
    let remedy = "start on a terminal, or use file or credential";
    if !terminal {
        return Err(problem(&format!("there is no terminal to ask for the PIN; {remedy}")));
    }
    let pin = rpassword::prompt_password(format!("PIN {name}: "))
        .map(Zeroizing::new)
        .map_err(|error| problem(&format!("the PIN could not be read ({error}); {remedy}")))?;
    check(&pin).map_err(|text| problem(&text))
}

fn read(name: &str, path: &Path, file: File) -> Result<SecretString, Problem> {
    let problem = |text: &str| Problem::new(path.display().to_string(), format!("pins.{name}"), text);
    // Two more than a PIN's longest for its newline, one more to notice; with
    // all of it reserved, no copy is left behind by growing.
    let mut bytes = Zeroizing::new(Vec::with_capacity(2 * PIN_BYTES_MAX));
    file.take(PIN_BYTES_MAX as u64 + 3)
        .read_to_end(&mut bytes)
        .map_err(|error| problem(&format!("cannot be read ({error}); check the file")))?;
    let text = std::str::from_utf8(&bytes).map_err(|_| problem("is not UTF-8; write the PIN as text"))?;
    let text = text.strip_suffix('\n').map_or(text, |text| text.strip_suffix('\r').unwrap_or(text));
    check(text).map_err(|text| problem(&text))
}

fn check(pin: &str) -> Result<SecretString, String> {
    match pin.len() {
        0 => Err("has no PIN in it; write the PIN into it".into()),
        length if length > PIN_BYTES_MAX => {
            Err(format!("has more than {PIN_BYTES_MAX} bytes; write the PIN alone into it"))
        }
        _ => Ok(SecretString::from(pin)),
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test may fail loudly")]
mod tests {
    use super::*;
    use secrecy::ExposeSecret;

    #[test]
    fn a_credential_is_a_file_of_systemds_folder() {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("hsm"), "4711\r\n").unwrap();
        let pin = credential("user", "hsm", Some(folder.path().into())).unwrap();
        assert_eq!(pin.expose_secret(), "4711");

        let missing = credential("user", "other", Some(folder.path().into())).unwrap_err();
        assert_eq!(missing.key, "pins.user.credential");
        assert!(missing.remedy.contains("LoadCredential=other:PATH"), "{missing}");
        assert_eq!(
            credential("user", "hsm", None).unwrap_err().to_string(),
            "environment variable CREDENTIALS_DIRECTORY: pins.user.credential: is not set, so this is not a \
             systemd service with credentials; add LoadCredential=hsm:PATH to the service's unit"
        );
    }

    #[test]
    fn without_a_terminal_nobody_is_asked() {
        assert_eq!(
            prompt("user", false).unwrap_err().to_string(),
            "the terminal: pins.user.prompt: there is no terminal to ask for the PIN; start on a terminal, or \
             use file or credential"
        );
    }
}
