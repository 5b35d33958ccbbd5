//! The token, as somebody with pkcs11-tool and the PIN sees it.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use strongroom::hsm::softhsm;

/// DIR/hsm.
pub struct Token {
    folder: PathBuf,
}

/// An object that pkcs11-tool lists.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Object {
    /// The first line: class and kind.
    pub kind: String,
    /// CKA_ID in hex.
    pub id: String,
    /// CKA_LABEL.
    pub label: String,
}

impl Token {
    pub fn new(folder: &Path) -> Token {
        Token { folder: folder.to_owned() }
    }

    /// Runs pkcs11-tool with the user's PIN.
    pub fn tool(&self, arguments: &[&str]) -> Output {
        let pin = fs::read_to_string(self.folder.join("user.pin")).unwrap();
        Command::new("pkcs11-tool")
            .env("SOFTHSM2_CONF", self.folder.join("softhsm2.conf"))
            .arg("--module")
            .arg(softhsm::library().expect(softhsm::INSTALL_HINT))
            .args(["--token-label", "strongroom-dev", "--login", "--pin", &pin])
            .args(arguments)
            .output()
            .expect("pkcs11-tool is not installed: install OpenSC (Debian: apt-get install opensc)")
    }

    /// Every object of the token.
    pub fn objects(&self) -> Vec<Object> {
        let output = self.tool(&["--list-objects"]);
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        let mut objects: Vec<Object> = Vec::new();
        for line in String::from_utf8(output.stdout).unwrap().lines() {
            if !line.starts_with(' ') {
                objects.push(Object { kind: line.to_owned(), id: String::new(), label: String::new() });
            } else if let Some((name, value)) = line.trim().split_once(':') {
                let object = objects.last_mut().unwrap();
                match name {
                    "ID" => object.id = value.trim().to_owned(),
                    "label" => object.label = value.trim().to_owned(),
                    _ => (),
                }
            }
        }
        objects
    }

    /// CKA_IDs in hex, in order.
    pub fn ids(&self) -> Vec<String> {
        let mut ids: Vec<String> = self.objects().into_iter().map(|object| object.id).collect();
        ids.sort();
        ids
    }

    /// The same of objects that have a CKA_ID. Where a process is killed within
    /// C_GenerateKeyPair, SoftHSM2 may leave one with no name and no key.
    pub fn named_ids(&self) -> Vec<String> {
        self.ids().into_iter().filter(|id| !id.is_empty()).collect()
    }
}
