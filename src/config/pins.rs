//! PINs: from a file, a systemd credential or a terminal; never from a flag,
//! an environment variable or the configuration itself. Other secrets: from
//! files of the same kind.

use std::ffi::OsString;
use std::fs::File;
use std::io::{IsTerminal, Read};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use secrecy::SecretString;
use zeroize::Zeroizing;

use super::error::Problem;
use super::settings::{Config, PinSource};

/// Longer secrets are refused: PKCS#11 tokens take PINs of 255 bytes at most.
const SECRET_BYTES_MAX: usize = 255;

/// What a secret is called, and the key that says where it is.
pub(super) struct Secret<'a> {
    /// `PIN`, `secret access key`.
    pub what: &'a str,
    /// `pins.user`.
    pub key: String,
    /// The field of the file's path: `file`.
    pub file_field: &'a str,
}

impl Secret<'_> {
    fn pin(name: &str) -> Self {
        Secret { what: "PIN", key: format!("pins.{name}"), file_field: "file" }
    }

    /// The secret in a file that its owner alone can read.
    pub fn file(&self, path: &Path) -> Result<SecretString, Problem> {
        self.read(path, self.open_private(path)?)
    }

    /// Opens a file that its owner alone can read; what a symbolic link leads
    /// to is what counts.
    fn open_private(&self, path: &Path) -> Result<File, Problem> {
        let key = || format!("{}.{}", self.key, self.file_field);
        let problem = |text: String| Problem::new(path.display().to_string(), key(), &text);
        let file = File::open(path).map_err(|error| {
            problem(format!(
                "cannot be read ({error}); write the {} into it, readable by the daemon's user alone",
                self.what
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

    fn read(&self, path: &Path, file: File) -> Result<SecretString, Problem> {
        let what = self.what;
        let problem = |text: &str| Problem::new(path.display().to_string(), self.key.clone(), text);
        // Two more than a secret's longest for its newline, one more to notice;
        // with all of it reserved, no copy is left behind by growing.
        let mut bytes = Zeroizing::new(Vec::with_capacity(2 * SECRET_BYTES_MAX));
        file.take(SECRET_BYTES_MAX as u64 + 3)
            .read_to_end(&mut bytes)
            .map_err(|error| problem(&format!("cannot be read ({error}); check the file")))?;
        let text = std::str::from_utf8(&bytes)
            .map_err(|_| problem(&format!("is not UTF-8; write the {what} as text")))?;
        let text = text.strip_suffix('\n').map_or(text, |text| text.strip_suffix('\r').unwrap_or(text));
        self.check(text).map_err(|text| problem(&text))
    }

    fn check(&self, secret: &str) -> Result<SecretString, String> {
        let what = self.what;
        match secret.len() {
            0 => Err(format!("has no {what} in it; write the {what} into it")),
            length if length > SECRET_BYTES_MAX => {
                Err(format!("has more than {SECRET_BYTES_MAX} bytes; write the {what} alone into it"))
            }
            _ => Ok(SecretString::from(secret)),
        }
    }
}

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
            PinSource::File(path) => Secret::pin(name).file(path),
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
        files.filter_map(|(name, path)| Secret::pin(name).open_private(path).err()).collect()
    }
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
    Secret::pin(name).read(&path, file)
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
    Secret::pin(name).check(&pin).map_err(|text| problem(&text))
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
