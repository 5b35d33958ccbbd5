//! A CA, clients and a server with a trivial service, for the transport's
//! tests.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use bytes::Bytes;
use http::{Request, Response};
use http_body_util::{BodyExt, Empty, Full};
use hyper::body::Incoming;
use hyper::client::conn::http2;
use hyper_util::rt::{TokioExecutor, TokioIo};
use rcgen::{
    BasicConstraints, CertificateParams, CertificateRevocationListParams, CertifiedIssuer, DnType,
    ExtendedKeyUsagePurpose, IsCa, KeyIdMethod, KeyPair, KeyUsagePurpose, RevokedCertParams, SanType,
    SerialNumber, date_time_ymd,
};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use rustls::{ClientConfig, RootCertStore, SupportedProtocolVersion};
use strongroom::api::identity::Authenticator;
use strongroom::api::limits::{Gate, TransportLimits};
use strongroom::api::listener::{Bind, Listener, Protocol, Serving};
use strongroom::api::tls::{ClientCaSettings, TlsError, TlsSettings, TlsState};
use strongroom::caller::{Caller, Credential, Origin, Principal, PrincipalKind};
use tempfile::TempDir;
use tokio::net::{TcpSocket, TcpStream, UnixStream};
use tokio::sync::Semaphore;
use tokio::task::JoinHandle;
use tokio::time::{sleep, timeout};
use tokio_rustls::TlsConnector;
use tokio_util::sync::CancellationToken;

/// Longer than anything here takes; what takes longer hangs.
pub const LONG: Duration = Duration::from_secs(60);

pub fn folder() -> TempDir {
    tempfile::tempdir().unwrap()
}

pub async fn eventually(condition: impl Fn() -> bool) {
    timeout(LONG, async {
        while !condition() {
            sleep(Duration::from_millis(2)).await;
        }
    })
    .await
    .expect("the condition never came true");
}

/// A CA, and how the server is told of it.
#[derive(Clone)]
pub struct Ca {
    issuer: Arc<CertifiedIssuer<'static, KeyPair>>,
    name: String,
    common_names: bool,
    crl: Option<String>,
}

impl Ca {
    pub fn new(name: &str) -> Ca {
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        params.distinguished_name.push(DnType::CommonName, name);
        let issuer = CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap();
        Ca { issuer: Arc::new(issuer), name: name.to_owned(), common_names: true, crl: None }
    }

    pub fn without_common_names(mut self) -> Ca {
        self.common_names = false;
        self
    }

    /// The same CA under another name.
    pub fn renamed(&self, name: &str) -> Ca {
        Ca { name: name.to_owned(), ..self.clone() }
    }

    pub fn with_crl(&self, revoked: &[&Client], next_update_year: i32) -> Ca {
        self.with_crl_text(self.crl(revoked, next_update_year))
    }

    pub fn with_crl_text(&self, crl: String) -> Ca {
        Ca { crl: Some(crl), ..self.clone() }
    }

    pub fn crl(&self, revoked: &[&Client], next_update_year: i32) -> String {
        let revoked = revoked.iter().map(|client| RevokedCertParams {
            serial_number: client.serial(),
            revocation_time: date_time_ymd(2020, 1, 1),
            reason_code: None,
            invalidity_date: None,
        });
        let params = CertificateRevocationListParams {
            this_update: date_time_ymd(2019, 1, 1),
            next_update: date_time_ymd(next_update_year, 1, 1),
            crl_number: SerialNumber::from(1_u64),
            issuing_distribution_point: None,
            revoked_certs: revoked.collect(),
            key_identifier_method: KeyIdMethod::Sha256,
        };
        params.signed_by(&self.issuer).unwrap().pem().unwrap()
    }

    pub fn client(&self) -> Client {
        static SERIALS: AtomicU64 = AtomicU64::new(1);
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.distinguished_name = rcgen::DistinguishedName::new();
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
        params.serial_number = Some(SerialNumber::from(SERIALS.fetch_add(1, Ordering::Relaxed)));
        Client {
            identity: Some((self.clone(), params, Arc::new(KeyPair::generate().unwrap()))),
            ..Client::none()
        }
    }
}

/// A client's certificate, and how it speaks TLS.
#[derive(Clone)]
pub struct Client {
    identity: Option<(Ca, CertificateParams, Arc<KeyPair>)>,
    version: &'static SupportedProtocolVersion,
    alpn: Vec<Vec<u8>>,
}

impl Client {
    /// A client without a certificate.
    pub fn none() -> Client {
        Client { identity: None, version: &rustls::version::TLS13, alpn: vec![b"h2".to_vec()] }
    }

    pub fn uri(self, uri: &str) -> Client {
        self.with(|params| params.subject_alt_names.push(SanType::URI(uri.try_into().unwrap())))
    }

    pub fn cn(self, cn: &str) -> Client {
        self.with(|params| params.distinguished_name.push(DnType::CommonName, cn))
    }

    /// Valid from the first day of a year to the first day of another.
    pub fn valid(self, from_year: i32, to_year: i32) -> Client {
        self.with(|params| {
            params.not_before = date_time_ymd(from_year, 1, 1);
            params.not_after = date_time_ymd(to_year, 1, 1);
        })
    }

    pub fn for_servers(self) -> Client {
        self.with(|params| params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth])
    }

    pub fn version(self, version: &'static SupportedProtocolVersion) -> Client {
        Client { version, ..self }
    }

    pub fn alpn(self, protocols: &[&str]) -> Client {
        Client { alpn: protocols.iter().map(|name| name.as_bytes().to_vec()).collect(), ..self }
    }

    fn with(mut self, change: impl FnOnce(&mut CertificateParams)) -> Client {
        let (_, params, _) = self.identity.as_mut().expect("a client with a certificate");
        change(params);
        self
    }

    fn serial(&self) -> SerialNumber {
        let (_, params, _) = self.identity.as_ref().expect("a client with a certificate");
        params.serial_number.clone().unwrap()
    }

    fn config(&self, server_ca: &CertificateDer<'static>) -> ClientConfig {
        let mut roots = RootCertStore::empty();
        roots.add(server_ca.clone()).unwrap();
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let builder = ClientConfig::builder_with_provider(provider)
            .with_protocol_versions(&[self.version])
            .unwrap()
            .with_root_certificates(roots);
        let mut config = match &self.identity {
            None => builder.with_no_client_auth(),
            Some((ca, params, key)) => {
                let certificate = params.signed_by(&**key, &ca.issuer).unwrap();
                let key = PrivateKeyDer::try_from(key.serialize_der()).unwrap();
                builder.with_client_auth_cert(vec![certificate.der().clone()], key).unwrap()
            }
        };
        config.alpn_protocols.clone_from(&self.alpn);
        config
    }
}

/// What the trivial service shares with its test.
struct Shared {
    authenticator: Arc<Authenticator>,
    hold: Semaphore,
    holding: AtomicUsize,
    /// Seconds since 1970; 0 is the real time.
    clock: AtomicU64,
}

/// A listener with a trivial service:
/// - `/ping` answers anybody;
/// - `/hold` answers when the test lets it;
/// - all else answers 200 with the principal's name, or 401 with the reason.
pub struct Server {
    pub folder: TempDir,
    pub address: SocketAddr,
    pub gate: Arc<Gate>,
    pub shutdown: CancellationToken,
    pub task: JoinHandle<usize>,
    server_ca: Ca,
    settings: parking_lot::Mutex<TlsSettings>,
    shared: Arc<Shared>,
}

impl Server {
    pub async fn start(cas: &[&Ca], limits: TransportLimits) -> Server {
        Self::start_with(cas, limits, LONG).await
    }

    pub async fn start_with(cas: &[&Ca], limits: TransportLimits, drain_timeout: Duration) -> Server {
        let any = Bind::Tcp("127.0.0.1:0".parse().unwrap());
        Self::start_on(&any, cas, limits, drain_timeout).await
    }

    /// Without a CA there is no TLS, and only a Unix socket is of use.
    pub async fn start_on(
        bind: &Bind,
        cas: &[&Ca],
        limits: TransportLimits,
        drain_timeout: Duration,
    ) -> Server {
        let folder = folder();
        let server_ca = Ca::new("server");
        write_certificate(folder.path(), &server_ca);
        let settings = settings(folder.path(), cas);
        let tls = (!cas.is_empty()).then(|| Arc::new(TlsState::load(&settings).unwrap()));
        let shared = Arc::new(Shared {
            authenticator: Arc::new(Authenticator::new(tls, Arc::new(resolve))),
            hold: Semaphore::new(0),
            holding: AtomicUsize::new(0),
            clock: AtomicU64::new(0),
        });
        let (gate, shutdown) = (Gate::new(limits), CancellationToken::new());
        let listener = Listener::bind(bind).await.unwrap();
        let address = match listener.bound() {
            Bind::Tcp(address) => address,
            Bind::Unix { .. } => "127.0.0.1:0".parse().unwrap(),
        };
        let service = {
            let shared = shared.clone();
            tower::service_fn(move |request| serve(request, shared.clone()))
        };
        let serving = Serving {
            protocol: Protocol::Grpc,
            authenticator: shared.authenticator.clone(),
            gate: gate.clone(),
            shutdown: shutdown.clone(),
            drain_timeout,
        };
        let task = tokio::spawn(listener.serve(service, serving));
        let settings = parking_lot::Mutex::new(settings);
        Server { folder, address, gate, shutdown, task, server_ca, settings, shared }
    }

    /// A connection on which one request was answered, so that the server has
    /// taken the client's certificate.
    pub async fn connect(&self, client: &Client) -> Result<Connected, String> {
        self.connect_from(client, "127.0.0.1").await
    }

    pub async fn connect_from(&self, client: &Client, from: &str) -> Result<Connected, String> {
        let stream = self.handshake(client, from).await?;
        let server_certificate = stream.get_ref().1.peer_certificates().unwrap()[0].to_vec();
        let mut connected = Connected::over(stream, server_certificate).await?;
        let answer = connected.request("/ping").await.map_err(|e| e.to_string())?;
        assert_eq!(answer.status(), 204);
        Ok(connected)
    }

    /// A TLS handshake, as the client sees it: in TLS 1.3 it does not know
    /// yet whether the server took its certificate.
    pub async fn handshake(
        &self,
        client: &Client,
        from: &str,
    ) -> Result<tokio_rustls::client::TlsStream<TcpStream>, String> {
        let socket = TcpSocket::new_v4().unwrap();
        socket.bind(SocketAddr::new(from.parse().unwrap(), 0)).unwrap();
        let stream = socket.connect(self.address).await.map_err(|e| e.to_string())?;
        let config = client.config(self.server_ca.issuer.der());
        let name = ServerName::try_from("localhost").unwrap();
        let handshake = TlsConnector::from(Arc::new(config)).connect(name, stream);
        timeout(LONG, handshake).await.expect("the handshake hangs").map_err(|e| e.to_string())
    }

    pub fn settings(&self, cas: &[&Ca]) -> TlsSettings {
        settings(self.folder.path(), cas)
    }

    /// Reloads with these CAs, or with the ones of before if there are none.
    pub fn reload(&self, cas: &[&Ca]) -> Result<(), TlsError> {
        let new = if cas.is_empty() { self.settings.lock().clone() } else { self.settings(cas) };
        let tls = TlsState::load(&new)?;
        self.shared.authenticator.swap(Some(Arc::new(tls)), Arc::new(resolve));
        *self.settings.lock() = new;
        Ok(())
    }

    pub fn renew_certificate(&self) {
        write_certificate(self.folder.path(), &self.server_ca);
    }

    pub fn overwrite(&self, file: &str, content: &str) -> Overwritten {
        let path = self.folder.path().join(file);
        let before = std::fs::read(&path).unwrap();
        std::fs::write(&path, content).unwrap();
        Overwritten { path, before }
    }

    /// What requests take for now: the second of January of a year.
    pub fn set_clock(&self, year: i32) {
        let seconds = date_time_ymd(year, 1, 2).unix_timestamp();
        self.shared.clock.store(seconds.try_into().unwrap(), Ordering::SeqCst);
    }

    /// How many requests ever came to `/hold`.
    pub fn holding(&self) -> usize {
        self.shared.holding.load(Ordering::SeqCst)
    }

    pub async fn held(&self, count: usize) {
        eventually(|| self.holding() >= count).await;
    }

    /// Lets requests to `/hold` have their answer.
    pub fn release(&self, count: usize) {
        self.shared.hold.add_permits(count);
    }

    /// Waits for the end of a drain: how many connections were cut off.
    pub async fn finish(self) -> usize {
        timeout(LONG, self.task).await.expect("the drain hangs").unwrap()
    }
}

pub struct Overwritten {
    path: PathBuf,
    before: Vec<u8>,
}

impl Overwritten {
    pub fn undo(self) {
        std::fs::write(self.path, self.before).unwrap();
    }
}

pub type Started = JoinHandle<Result<Response<Incoming>, hyper::Error>>;

/// A client's connection.
pub struct Connected {
    pub server_certificate: Vec<u8>,
    sender: http2::SendRequest<Empty<Bytes>>,
    driver: JoinHandle<()>,
}

impl Connected {
    pub async fn unix(path: &Path) -> Connected {
        let stream = UnixStream::connect(path).await.unwrap();
        Self::over(stream, Vec::new()).await.unwrap()
    }

    async fn over<T>(stream: T, server_certificate: Vec<u8>) -> Result<Connected, String>
    where
        T: tokio::io::AsyncRead + tokio::io::AsyncWrite + Send + Unpin + 'static,
    {
        let (sender, connection) =
            http2::handshake(TokioExecutor::new(), TokioIo::new(stream)).await.map_err(|e| e.to_string())?;
        let driver = tokio::spawn(async move {
            // How it ends is what the requests tell.
            let _ = connection.await;
        });
        Ok(Connected { server_certificate, sender, driver })
    }

    pub async fn get(&mut self, path: &str) -> (u16, String) {
        Self::answer(self.start(path)).await
    }

    /// The status of a request with one header of this many bytes.
    pub async fn get_with_header(&mut self, path: &str, bytes: usize) -> Result<u16, hyper::Error> {
        let mut request = self.head(path);
        request.headers_mut().insert("x-long", "x".repeat(bytes).try_into().unwrap());
        let answer = timeout(LONG, self.sender.send_request(request)).await.expect("no answer")?;
        Ok(answer.status().as_u16())
    }

    /// Sends a request and goes on.
    pub fn start(&mut self, path: &str) -> Started {
        tokio::spawn(self.request(path))
    }

    pub async fn answer(started: Started) -> (u16, String) {
        let response = timeout(LONG, started).await.expect("no answer").unwrap().unwrap();
        let status = response.status().as_u16();
        let body = response.into_body().collect().await.unwrap().to_bytes();
        (status, String::from_utf8(body.to_vec()).unwrap())
    }

    /// Waits until the server has closed the connection.
    pub async fn closed(self) {
        // The sender alone would keep it open.
        let Connected { sender, driver, .. } = self;
        driver.await.unwrap();
        drop(sender);
    }

    fn request(
        &mut self,
        path: &str,
    ) -> impl Future<Output = Result<Response<Incoming>, hyper::Error>> + Send + 'static {
        let request = self.head(path);
        self.sender.send_request(request)
    }

    fn head(&self, path: &str) -> Request<Empty<Bytes>> {
        Request::get(format!("https://localhost{path}"))
            .header("user-agent", "test/1")
            .body(Empty::new())
            .unwrap()
    }
}

async fn serve(request: Request<Incoming>, shared: Arc<Shared>) -> Result<Response<Full<Bytes>>, Infallible> {
    let (head, _) = request.into_parts();
    let answer =
        |status: u16, text: String| Ok(Response::builder().status(status).body(Full::from(text)).unwrap());
    match head.uri.path() {
        "/ping" => return answer(204, String::new()),
        "/hold" => {
            shared.holding.fetch_add(1, Ordering::SeqCst);
            shared.hold.acquire().await.unwrap().forget();
            return answer(200, "held".to_owned());
        }
        _ => {}
    }
    let caller = match shared.clock.load(Ordering::SeqCst) {
        0 => shared.authenticator.authenticate(&head),
        seconds => {
            let now = UnixTime::since_unix_epoch(Duration::from_secs(seconds));
            shared.authenticator.authenticate_at(&head, now)
        }
    };
    match caller {
        Ok(caller) => answer(200, described(&caller, head.uri.path())),
        Err(refusal) => answer(401, refusal.reason.to_owned()),
    }
}

fn described(caller: &Caller, path: &str) -> String {
    match (path, &caller.tls, &caller.origin) {
        ("/session", Some(tls), _) => {
            let host = tls.host.clone().unwrap_or_default();
            let agent = caller.user_agent.clone().unwrap_or_default();
            format!(
                "{}|{}|{host}|{}|{agent}",
                tls.version,
                tls.cipher_suite,
                tls.certificate_sha256.as_deref().unwrap_or_default()
            )
        }
        ("/peer", None, Origin::Unix { uid, pid }) => format!("{uid}|{}", pid.unwrap_or(0)),
        _ => caller.principal.name.clone(),
    }
}

/// The configuration's principals: the first credential that names one.
fn resolve(credentials: &[Credential]) -> Option<Arc<Principal>> {
    credentials.iter().find_map(|credential| {
        let name = match credential {
            Credential::Uri(uri) if uri == "spiffe://test/alice" => "alice",
            Credential::CommonName { ca, cn } if ca == "staff" && cn == "bob" => "bob",
            Credential::Uid(uid) if *uid == rustix::process::getuid().as_raw() => "local",
            _ => return None,
        };
        Some(Arc::new(Principal {
            tags: Default::default(),
            account: "111122223333".to_owned(),
            kind: PrincipalKind::User,
            name: name.to_owned(),
            arn: format!("arn:aws:iam::111122223333:user/{name}"),
            principal_id: "AIDAEXAMPLE".to_owned(),
            policies: Vec::new(),
        }))
    })
}

fn write_certificate(folder: &Path, ca: &Ca) {
    let key = KeyPair::generate().unwrap();
    let params = CertificateParams::new(vec!["localhost".to_owned()]).unwrap();
    let certificate = params.signed_by(&key, &ca.issuer).unwrap();
    std::fs::write(folder.join("server.pem"), certificate.pem()).unwrap();
    std::fs::write(folder.join("server.key"), key.serialize_pem()).unwrap();
}

fn settings(folder: &Path, cas: &[&Ca]) -> TlsSettings {
    let client_cas = cas.iter().map(|ca| {
        let file = folder.join(format!("{}.pem", ca.name));
        std::fs::write(&file, ca.issuer.pem()).unwrap();
        let crl = ca.crl.as_ref().map(|text| {
            let file = folder.join(format!("{}.crl", ca.name));
            std::fs::write(&file, text).unwrap();
            file
        });
        ClientCaSettings { name: ca.name.clone(), file, crl, common_names: ca.common_names }
    });
    TlsSettings {
        certificate: folder.join("server.pem"),
        key: folder.join("server.key"),
        client_cas: client_cas.collect(),
    }
}
