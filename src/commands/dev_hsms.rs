//! The HSMs of `strongroom dev`, each a SoftHSM2 with a token folder of its own.

use std::fs::{self, DirBuilder};
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use anyhow::Context as _;
use secrecy::{ExposeSecret, SecretString};

use super::dev_setup::{MODULE, SoftHsm, TOKEN_LABEL, USER_PIN, make_whole, replace, sync_parent};
use crate::pki;

/// Most HSMs of an instance.
pub const MEMBERS_MAX: u16 = 8;

/// What the token folder of an HSM is called until it is put in its place.
const UNPLACED: &str = "token";
/// The file that says that an HSM became a member.
const JOINED: &str = "joined";

/// An HSM besides the first.
#[derive(Debug, Clone)]
pub struct DevMember {
    /// 2, 3, …
    pub number: u16,
    /// DIR/hsm/NUMBER.
    pub tokens: PathBuf,
    /// Where its PINs, serial and configuration are.
    pub folder: PathBuf,
    /// The RFC 7512 URI of its token.
    pub token: String,
    /// The name of its module.
    pub module: String,
    /// The name of its crypto user's PIN.
    pub pin: String,
    /// Whether it is still to become a member of the cluster.
    pub joins: bool,
}

impl DevMember {
    /// Remembers that it became a member: should it be removed, it stays so.
    pub fn mark_joined(&self) -> anyhow::Result<()> {
        replace(&self.folder.join(JOINED), b"", 0o600)
    }
}

/// Makes a token in `FOLDER/NAME`, with its PINs, serial and URI beside it: its serial.
pub(super) fn make_token(
    hsm: &Path,
    name: &str,
    label: &str,
    library: &Path,
    softhsm: &dyn SoftHsm,
) -> anyhow::Result<String> {
    make_whole(hsm, |folder| {
        let tokens = folder.join(name);
        DirBuilder::new().mode(0o700).create(&tokens)?;
        let conf = softhsm.write_conf(folder, &tokens)?;
        let (so_pin, pin) = (random_pin()?, random_pin()?);
        let serial = softhsm.init_token(library, &conf, label, &so_pin, &pin)?;
        pki::write_new(&folder.join("so.pin"), so_pin.expose_secret().as_bytes(), 0o600)?;
        pki::write_new(&folder.join("user.pin"), pin.expose_secret().as_bytes(), 0o600)?;
        pki::write_new(&folder.join("serial"), serial.as_bytes(), 0o600)?;
        pki::write_new(&folder.join("uri"), token_uri(label, &serial).as_bytes(), 0o600)?;
        Ok(())
    })?;
    let serial = hsm.join("serial");
    fs::read_to_string(&serial).with_context(|| serial.display().to_string())
}

/// Makes the HSMs 2, 3, … up to as many as are asked for, or as there are.
pub(super) fn make_members(
    hsm: &Path,
    wanted: Option<u16>,
    library: &Path,
    softhsm: &dyn SoftHsm,
) -> anyhow::Result<Vec<DevMember>> {
    let mut members = Vec::new();
    for number in 2..=MEMBERS_MAX {
        let folder = hsm.join(format!("member-{number}"));
        if wanted.is_none_or(|wanted| number > wanted) && !folder.exists() {
            break;
        }
        let label = format!("{TOKEN_LABEL}-{number}");
        let serial = make_token(&folder, UNPLACED, &label, library, softhsm)?;
        let (unplaced, tokens) = (folder.join(UNPLACED), hsm.join(number.to_string()));
        // Once: a person may have taken it away from its place.
        if unplaced.exists() {
            fs::rename(unplaced, &tokens)?;
            sync_parent(&tokens)?;
        }
        members.push(DevMember {
            number,
            token: token_uri(&label, &serial),
            module: format!("{MODULE}-{number}"),
            pin: format!("{USER_PIN}-{number}"),
            joins: !folder.join(JOINED).exists(),
            tokens,
            folder,
        });
    }
    Ok(members)
}

pub(super) fn token_uri(label: &str, serial: &str) -> String {
    format!("pkcs11:token={label};serial={serial}")
}

fn random_pin() -> anyhow::Result<SecretString> {
    const PIN_BYTES: usize = 16;
    let mut bytes = zeroize::Zeroizing::new([0; PIN_BYTES]);
    aws_lc_rs::rand::fill(&mut *bytes).map_err(|_| anyhow::anyhow!("no random bytes for a PIN"))?;
    Ok(SecretString::from(hex::encode(*bytes)))
}
