//! The text of a first configuration file.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::Path;

/// The name of the administrator that `init` and `dev` make.
pub const ADMINISTRATOR: &str = "administrator";

/// What differs between one first configuration and another.
pub struct Template<'a> {
    /// What the first line says.
    pub title: &'a str,
    pub region: &'a str,
    pub data_dir: &'a Path,
    pub grpc: SocketAddr,
    pub aws: SocketAddr,
    /// Whether the AWS port is without TLS.
    pub aws_plaintext: bool,
    pub http: SocketAddr,
    pub unix_socket: Option<&'a Path>,
    pub module: &'a str,
    pub library: &'a Path,
    pub environment: BTreeMap<&'a str, String>,
    /// Names and files of PINs.
    pub pins: &'a [(&'a str, &'a str)],
    pub account: &'a str,
    /// The administrator's access key: its id, and the file of its secret.
    pub access_key: (&'a str, &'a str),
    /// Who is the administrator too, by Unix socket.
    pub uid: Option<u32>,
}

impl Template<'_> {
    /// The file. Paths of the PKI are relative to it.
    pub fn text(&self) -> String {
        let mut text = format!(
            "# {title}\n\
             # `strongroom check-config` checks this file; `--print` shows every key with its default.\n\
             # SIGHUP reloads it. Relative paths are relative to this file's folder.\n\
             \n\
             region = {region}\n\
             data_dir = {data_dir}\n\
             \n\
             [grpc]\n\
             address = {grpc}\n",
            title = self.title,
            region = quoted(self.region),
            data_dir = quoted_path(self.data_dir),
            grpc = quoted(&self.grpc.to_string()),
        );
        if let Some(socket) = self.unix_socket {
            text += &format!("unix_socket = {}\n", quoted_path(socket));
        }
        text += &format!(
            "\n\
             # AWS JSON, for the aws command and every SDK.\n\
             [aws]\n\
             address = {aws}\n\
             {plaintext}\
             \n\
             # /livez, /readyz and /metrics.\n\
             [http]\n\
             address = {http}\n\
             \n\
             [tls]\n\
             certificate = \"pki/server.pem\"\n\
             key = \"pki/server.key\"\n\
             \n\
             # A CA whose clients may connect. Who they are is said in [[accounts]].\n\
             [tls.client_cas.own]\n\
             file = \"pki/ca.pem\"\n\
             # crl = \"pki/ca.crl\"\n\
             \n\
             # The PKCS#11 library of the HSM.\n\
             [modules.{module}]\n\
             library = {library}\n",
            aws = quoted(&self.aws.to_string()),
            plaintext = if self.aws_plaintext { "plaintext = true\n" } else { "" },
            http = quoted(&self.http.to_string()),
            module = self.module,
            library = quoted_path(self.library),
        );
        if !self.environment.is_empty() {
            text += &format!("\n[modules.{}.environment]\n", self.module);
            for (name, value) in &self.environment {
                text += &format!("{name} = {}\n", quoted(value));
            }
        }
        text += "\n# Where PINs come from: file = \"PATH\" (mode 0600), credential = \"NAME\" (systemd) or\n\
                 # prompt = true. A PIN itself never stands here.\n";
        for (name, file) in self.pins {
            text += &format!("[pins.{name}]\nfile = {}\n\n", quoted(file));
        }
        text + &self.accounts()
    }

    fn accounts(&self) -> String {
        let uri = crate::pki::user_uri(self.account, ADMINISTRATOR);
        let uid = self.uid.map_or_else(String::new, |uid| format!("    {{ uid = {uid} }},\n"));
        format!(
            "[[accounts]]\n\
             id = {account}\n\
             name = \"main\"\n\
             \n\
             [[accounts.principals]]\n\
             name = \"{ADMINISTRATOR}\"\n\
             type = \"user\"\n\
             identities = [\n    \
             {{ uri = {uri} }},\n\
             {uid}\
             ]\n\
             # What it signs requests of the AWS protocol with; the secret is in a file of mode 0600.\n\
             access_keys = [{{ id = {key}, secret_file = {secret_file} }}]\n\
             # A built-in policy's name, a JSON document or {{ file = \"PATH\" }}.\n\
             policies = [\"AdministratorAccess\"]\n",
            account = quoted(self.account),
            uri = quoted(&uri),
            key = quoted(self.access_key.0),
            secret_file = quoted(self.access_key.1),
        )
    }
}

fn quoted(text: &str) -> String {
    toml_edit::Value::from(text).to_string()
}

fn quoted_path(path: &Path) -> String {
    quoted(&path.to_string_lossy())
}
