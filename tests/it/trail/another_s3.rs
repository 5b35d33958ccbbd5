//! A trail into an S3 server of other make: s3s-fs, in this process, whose
//! objects are files.

use std::fs;
use std::net::SocketAddr;
use std::path::Path;
use std::process::Command;

use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::server::conn::auto::Builder;
use s3s::auth::SimpleAuth;
use s3s::service::S3ServiceBuilder;
use s3s_fs::FileSystem;
use serde_json::Value;
use tokio::net::TcpListener;
use tokio::task::JoinHandle;

use super::{BUCKET, TRAIL, bucket, delivered, files, logged, make_trail, stop, work};
use crate::interop::{environment, python};
use crate::support::{Instance, eventually};

/// What a client of this daemon has in its environment, and its object store.
struct Clients {
    endpoint: String,
    /// DIR/env, and where S3 is.
    environment: Vec<(String, String)>,
}

impl Clients {
    /// `strongroom trail verify`.
    fn verify(&self, instance: &Instance) -> (Option<i32>, Value) {
        let arguments = ["trail", "verify", "--name", TRAIL, "--s3-endpoint", &self.endpoint, "-o", "json"];
        let output = instance.command(&arguments).envs(self.environment.clone()).output().unwrap();
        let report = serde_json::from_slice(&output.stdout);
        (output.status.code(), report.unwrap_or_else(|_| panic!("{output:?}")))
    }

    /// `aws cloudtrail validate-logs`, as AWS made it: its exit code and its text.
    fn validate(&self) -> (Option<i32>, String) {
        let arn = format!("arn:aws:cloudtrail:us-east-1:111122223333:trail/{TRAIL}");
        let mut command = Command::new(python().with_file_name("aws"));
        for (name, _) in std::env::vars_os() {
            if name.to_string_lossy().starts_with("AWS_") {
                command.env_remove(name);
            }
        }
        command.args(["cloudtrail", "validate-logs", "--trail-arn", &arn]);
        command.args(["--start-time", "2020-01-01T00:00:00Z"]).envs(self.environment.clone());
        let output = command.output().unwrap();
        let text = [output.stdout, output.stderr].concat();
        (output.status.code(), String::from_utf8_lossy(&text).into_owned())
    }
}

/// A server whose buckets are the folders of `root`, for who has this access key.
async fn serve(root: &Path, id: String, secret: String) -> (SocketAddr, JoinHandle<()>) {
    let mut service = S3ServiceBuilder::new(FileSystem::new(root).unwrap());
    service.set_auth(SimpleAuth::from_single(id, secret));
    let service = service.build();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let server = tokio::spawn(async move {
        while let Ok((socket, _)) = listener.accept().await {
            let service = service.clone();
            tokio::spawn(async move {
                let connection = Builder::new(TokioExecutor::new());
                // A daemon that is killed leaves half a request.
                let _ = connection.serve_connection(TokioIo::new(socket), service).await;
            });
        }
    });
    (address, server)
}

#[tokio::test(flavor = "multi_thread")]
async fn another_s3_has_each_event_once_and_every_check_finds_what_was_changed() {
    let mut instance = super::instance();
    instance.unset("STRONGROOM_TRAIL__FOLDER");
    instance.set("STRONGROOM_TRAIL__DIGEST_INTERVAL", "2s");
    let root = instance.beside("buckets");
    fs::create_dir_all(root.join(BUCKET)).unwrap();
    // The first start makes the access key.
    instance.start().await.terminate().await;
    let variable = |name: &str| {
        let found = environment(&instance.path("env")).into_iter().find(|(known, _)| known == name);
        found.unwrap_or_else(|| panic!("{name} is not in DIR/env")).1
    };
    let (id, secret) = (variable("AWS_ACCESS_KEY_ID"), variable("AWS_SECRET_ACCESS_KEY"));
    let (address, server) = serve(&root, id.clone(), secret.clone()).await;
    let endpoint = format!("http://{address}");
    instance.set("AWS_ENDPOINT_URL_S3", endpoint.clone());
    instance.set("AWS_ACCESS_KEY_ID", id);
    instance.set("AWS_SECRET_ACCESS_KEY", secret);

    let daemon = instance.start().await;
    let client = daemon.client().await;
    make_trail(&client).await;
    work(&client, 20).await;
    eventually("the first file", async || !files(&bucket(&instance), "/CloudTrail/").is_empty()).await;
    daemon.kill9();
    let daemon = instance.start().await;
    let client = daemon.client().await;
    work(&client, 20).await;
    stop(&client).await;
    let expected = logged(&client).await;
    eventually("every event is delivered", async || delivered(&instance).len() >= expected.len()).await;
    assert_eq!(delivered(&instance), expected);

    let mut variables = environment(&instance.path("env"));
    variables.push(("AWS_ENDPOINT_URL_S3".to_owned(), endpoint.clone()));
    let clients = Clients { endpoint, environment: variables };
    eventually("digests cover every file", async || {
        let (code, report) = clients.verify(&instance);
        code == Some(0) && report["NotYetCovered"] == 0
    })
    .await;
    let (code, said) = clients.validate();
    let logs = files(&bucket(&instance), "/CloudTrail/");
    let whole = format!("{0}/{0} log files valid", logs.len());
    assert!(code == Some(0) && said.contains(&whole), "{whole}: {said}");

    let key = |path: &Path| path.strip_prefix(bucket(&instance)).unwrap().display().to_string();
    let kept = fs::read(&logs[0]).unwrap();
    fs::write(&logs[0], fs::read(logs.last().unwrap()).unwrap()).unwrap();
    let (code, report) = clients.verify(&instance);
    assert!(code == Some(1) && report.to_string().contains(&key(&logs[0])), "{report}");
    let (code, said) = clients.validate();
    assert!(code == Some(1) && said.contains(&key(&logs[0])), "{said}");
    fs::remove_file(&logs[0]).unwrap();
    let (code, report) = clients.verify(&instance);
    assert!(code == Some(1) && report.to_string().contains(&key(&logs[0])), "{report}");
    fs::write(&logs[0], kept).unwrap();
    assert_eq!(clients.verify(&instance).0, Some(0));
    daemon.terminate().await;
    server.abort();
}
