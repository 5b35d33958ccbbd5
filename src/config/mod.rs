//! The configuration: layers, sections, and who there is.
//!
//! ```text
//! defaults < FILE < STRONGROOM_SECTION__KEY < flags ─→ Config ─→ Loaded
//!                                policies, CAs, CRLs, certificates ─┘
//! ```
//!
//! Everything that the configuration and its files say is read and checked at
//! once into one [`Loaded`], which SIGHUP replaces as a whole or not at all.
//! A [`ConfigError`] lists all problems that one reading can find, each with
//! file, key and remedy.

mod check;
mod directory;
mod error;
mod files;
mod layers;
mod pins;
mod rules;
mod settings;
mod values;

use std::ffi::OsString;
use std::path::{Path, PathBuf};

pub use directory::{ADMINISTRATOR_ACCESS, AccessKey, Account, Directory};
pub use error::{ConfigError, Problem};
pub use files::{ClientCaFiles, TlsFiles};
pub use layers::Flags;
pub use rules::*;
pub use settings::*;
pub use values::{AccountId, FileMode, check_region};

pub use check::SOCKET_PATH_BYTES_MAX;

use check::Report;
use files::Reader;
use layers::Layers;

/// A configuration that holds together, with what its files said.
#[derive(Debug, Clone)]
pub struct Loaded {
    /// The effective configuration, its paths absolute.
    pub config: Config,
    /// Accounts and principals.
    pub directory: Directory,
    /// The certificates of `[tls]` as they were read.
    pub tls: TlsFiles,
    /// SHA-256 in hex over the effective configuration and the contents of
    /// the files that it names; not of PINs, private and access keys.
    pub sha256: String,
}

impl Config {
    /// Reads the file (none: no file layer), the process's environment and
    /// the flags. Relative paths are relative to the file's folder, without a
    /// file to the current one.
    pub fn load(file: Option<&Path>, flags: &Flags) -> Result<Loaded, ConfigError> {
        Self::load_from(file, std::env::vars_os(), flags)
    }

    /// The same with another environment than the process's.
    pub fn load_from(
        file: Option<&Path>,
        environment: impl IntoIterator<Item = (OsString, OsString)>,
        flags: &Flags,
    ) -> Result<Loaded, ConfigError> {
        let layers = Layers::read(file, environment, flags)?;
        let (config, problems) = layers.extract::<Config>();
        let Some(mut config) = config else { return Err(ConfigError { problems }) };
        config.make_paths_absolute(&base_folder(file)?);

        let mut report = Report::new(&layers, problems);
        check::settings(&config, &mut report);
        let mut reader = Reader::new(&config);
        let tls = reader.tls(&config.tls, &mut report);
        let directory = directory::build(&config, &mut reader, &mut report);
        report.finish()?;
        let sha256 = reader.sha256();
        // INVARIANT: where `tls` is none, the report has said why.
        tls.map(|tls| Loaded { config, directory, tls, sha256 }).ok_or(ConfigError { problems: Vec::new() })
    }

    /// Every path of the configuration, for what holds for all of them.
    fn paths(&mut self) -> Vec<&mut PathBuf> {
        let mut paths = vec![&mut self.data_dir, &mut self.tls.certificate, &mut self.tls.key];
        paths.extend(&mut self.grpc.unix_socket);
        paths.extend(&mut self.trail.folder);
        paths.extend(&mut self.trail.s3.secret_access_key_file);
        paths.extend(self.targets.values_mut().flat_map(TargetSettings::paths));
        for ca in self.tls.client_cas.values_mut() {
            paths.push(&mut ca.file);
            paths.extend(&mut ca.crl);
        }
        paths.extend(self.modules.values_mut().map(|module| &mut module.library));
        paths.extend(self.pins.values_mut().filter_map(|pin| match pin {
            PinSource::File(path) => Some(path),
            PinSource::Credential(_) | PinSource::Prompt => None,
        }));
        for service in &mut self.services {
            paths.extend(service.access_keys.iter_mut().map(|key| &mut key.secret_file));
        }
        for principal in self.accounts.iter_mut().flat_map(|account| &mut account.principals) {
            paths.extend(principal.access_keys.iter_mut().map(|key| &mut key.secret_file));
            paths.extend(principal.policies.iter_mut().filter_map(|policy| match policy {
                PolicySource::File { file } => Some(file),
                PolicySource::Text(_) => None,
            }));
        }
        paths
    }

    fn make_paths_absolute(&mut self, folder: &Path) {
        for path in self.paths() {
            *path = folder.join(&path);
        }
    }
}

/// The keys in which two configurations differ and which take effect only
/// after a restart.
pub fn restart_needed(old: &Config, new: &Config) -> Vec<String> {
    let differs = [
        ("region", old.region != new.region),
        ("regions", old.regions != new.regions),
        ("data_dir", old.data_dir != new.data_dir),
        ("grpc.address", old.grpc.address != new.grpc.address),
        ("grpc.unix_socket", old.grpc.unix_socket != new.grpc.unix_socket),
        ("grpc.unix_socket_mode", old.grpc.unix_socket_mode != new.grpc.unix_socket_mode),
        ("aws.address", old.aws.address != new.aws.address),
        ("aws.plaintext", old.aws.plaintext != new.aws.plaintext),
        ("http.address", old.http.address != new.http.address),
        ("store", old.store != new.store),
        ("trail", old.trail != new.trail),
        ("history", old.history != new.history),
        ("insights", old.insights != new.insights),
        ("hsm", old.hsm != new.hsm),
        ("modules", old.modules != new.modules),
        ("log", old.log != new.log),
    ];
    differs.into_iter().filter(|(_, differs)| *differs).map(|(key, _)| key.to_owned()).collect()
}

fn base_folder(file: Option<&Path>) -> Result<PathBuf, ConfigError> {
    let folder = match file {
        Some(file) => std::path::absolute(file).map(|file| file.parent().map(Path::to_owned).unwrap_or(file)),
        None => std::env::current_dir(),
    };
    folder.map_err(|error| {
        let text = format!("the current folder is not known ({error}); give an absolute path with --config");
        ConfigError::one(Problem::new("the command line".into(), String::new(), &text))
    })
}
