//! The transport, over real sockets: who gets in, who stays in, and what one
//! peer can do to the others.

mod fixture;

use std::time::Duration;

use strongroom::api::limits::TransportLimits;
use strongroom::api::listener::{Bind, Listener};
use strongroom::api::tls::{TlsError, TlsState};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use fixture::{Ca, Client, Connected, LONG, Server, eventually, folder};

const ALICE: &str = "spiffe://test/alice";

/// A server that believes one CA, `staff`.
async fn staffed() -> (Server, Ca) {
    let ca = Ca::new("staff");
    let server = Server::start(&[&ca], TransportLimits::default()).await;
    (server, ca)
}

#[tokio::test]
async fn a_certificate_is_known_by_its_uri_first_and_by_its_cn_of_a_named_ca() {
    let staff = Ca::new("staff");
    let guests = Ca::new("guests").without_common_names();
    let server = Server::start(&[&guests, &staff], TransportLimits::default()).await;

    let mut both = server.connect(&staff.client().uri(ALICE).cn("bob")).await.unwrap();
    assert_eq!(both.get("/").await, (200, "alice".to_owned()));
    let mut by_cn = server.connect(&staff.client().cn("bob")).await.unwrap();
    assert_eq!(by_cn.get("/").await, (200, "bob".to_owned()));
    // The same name by a CA whose common names do not count, and a name that
    // is only nearly right.
    for client in
        [guests.client().cn("bob"), staff.client().uri("spiffe://test/alice/"), staff.client().cn("Bob")]
    {
        let mut nobody = server.connect(&client).await.unwrap();
        assert_eq!(nobody.get("/").await, (401, "no_principal".to_owned()));
    }
}

#[tokio::test]
async fn the_caller_carries_the_session_that_it_came_over() {
    let (server, ca) = staffed().await;
    for (version, name) in [(&rustls::version::TLS13, "TLSv1.3"), (&rustls::version::TLS12, "TLSv1.2")] {
        let mut client = server.connect(&ca.client().uri(ALICE).version(version)).await.unwrap();
        let (_, answer) = client.get("/session").await;
        let [tls, suite, host, fingerprint, agent]: [&str; 5] =
            answer.split('|').collect::<Vec<_>>().try_into().unwrap();
        assert_eq!((tls, host, agent), (name, "localhost", "test/1"));
        assert!(
            suite.starts_with("TLS_") && (suite.contains("_GCM_") || suite.contains("POLY1305")),
            "{suite}"
        );
        assert_eq!(fingerprint.len(), 64);
    }
}

#[tokio::test]
async fn strangers_do_not_get_through_the_handshake() {
    let (server, ca) = staffed().await;
    let expired = ca.client().uri(ALICE).valid(2019, 2020);
    let early = ca.client().uri(ALICE).valid(2190, 2191);
    let refused = [
        ("foreign", Ca::new("staff").client().uri(ALICE)),
        ("expired", expired),
        ("not yet valid", early),
        ("for servers only", ca.client().uri(ALICE).for_servers()),
        ("none", Client::none()),
        ("no ALPN", ca.client().uri(ALICE).alpn(&[])),
        ("HTTP/1.1 only", ca.client().uri(ALICE).alpn(&["http/1.1"])),
    ];
    for (what, client) in refused {
        assert!(server.connect(&client).await.is_err(), "a client got in: {what}");
    }
    assert!(server.connect(&ca.client().uri(ALICE)).await.is_ok());
}

#[tokio::test]
async fn revoked_certificates_and_unknown_status_are_refused() {
    let ca = Ca::new("staff");
    let (good, bad) = (ca.client().uri(ALICE), ca.client().uri(ALICE));
    let server = Server::start(&[&ca.with_crl(&[&bad], 2100)], TransportLimits::default()).await;
    assert!(server.connect(&bad).await.is_err());
    assert_eq!(server.connect(&good).await.unwrap().get("/").await.0, 200);

    // An expired CRL, and one of another CA, tell nothing: nobody gets in.
    for crl in [ca.crl(&[], 2020), Ca::new("staff").crl(&[], 2100), Ca::new("other").crl(&[], 2100)] {
        server.reload(&[&ca.with_crl_text(crl)]).unwrap();
        assert!(server.connect(&good).await.is_err());
    }
}

#[tokio::test]
async fn a_cas_veto_overrules_another_cas_word() {
    let ca = Ca::new("staff");
    let bad = ca.client().uri(ALICE);
    let lax = ca.renamed("lax");
    let server = Server::start(&[&lax, &ca.with_crl(&[&bad], 2100)], TransportLimits::default()).await;
    assert!(server.connect(&bad).await.is_err());
}

#[tokio::test]
async fn a_reload_holds_for_open_connections_at_their_next_request() {
    let (server, ca) = staffed().await;
    let (good, bad) = (ca.client().uri(ALICE), ca.client().uri(ALICE));
    let mut kept = server.connect(&good).await.unwrap();
    let mut revoked = server.connect(&bad).await.unwrap();
    assert_eq!(revoked.get("/").await, (200, "alice".to_owned()));
    assert_eq!(kept.get("/").await, (200, "alice".to_owned()));

    server.reload(&[&ca.with_crl(&[&bad], 2100)]).unwrap();
    assert_eq!(revoked.get("/").await, (401, "certificate_revoked".to_owned()));
    assert_eq!(kept.get("/").await, (200, "alice".to_owned()));

    server.reload(&[&Ca::new("successor")]).unwrap();
    assert_eq!(kept.get("/").await, (401, "certificate_unknown_issuer".to_owned()));
    server.reload(&[&ca]).unwrap();
    assert_eq!(revoked.get("/").await, (200, "alice".to_owned()), "the connection itself was never dropped");
}

#[tokio::test]
async fn time_holds_for_open_connections_too() {
    let ca = Ca::new("staff");
    let ends_2040 = ca.client().uri(ALICE).valid(2020, 2040);
    let ends_2100 = ca.client().uri(ALICE);
    let server = Server::start(&[&ca.with_crl(&[], 2060)], TransportLimits::default()).await;
    let mut first = server.connect(&ends_2040).await.unwrap();
    let mut second = server.connect(&ends_2100).await.unwrap();
    assert_eq!((first.get("/").await.0, second.get("/").await.0), (200, 200));
    server.set_clock(2040);
    assert_eq!(first.get("/").await, (401, "certificate_expired".to_owned()));
    assert_eq!(second.get("/").await.0, 200);
    server.set_clock(2060);
    assert_eq!(second.get("/").await, (401, "crl_expired".to_owned()));
}

#[tokio::test]
async fn a_new_server_certificate_is_for_new_handshakes() {
    let (server, ca) = staffed().await;
    let client = ca.client().uri(ALICE);
    let mut old = server.connect(&client).await.unwrap();
    server.renew_certificate();
    server.reload(&[&ca]).unwrap();
    let mut new = server.connect(&client).await.unwrap();
    assert_ne!(old.server_certificate, new.server_certificate);
    assert_eq!((old.get("/").await.0, new.get("/").await.0), (200, 200));
}

#[tokio::test]
async fn tls_is_loaded_whole_or_not_at_all_and_names_the_file() {
    let (server, ca) = staffed().await;
    let mut client = server.connect(&ca.client().uri(ALICE)).await.unwrap();
    let names = |error: TlsError, file: &str| {
        let text = error.to_string();
        assert!(text.contains(file), "{text} does not name {file}");
        assert!(!text.contains("-----"), "{text}");
    };
    for (file, content) in [
        ("server.pem", "nothing"),
        ("server.key", "-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n"),
        ("staff.pem", "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"),
        ("staff.pem", "-----BEGIN CERTIFICATE-----\n"),
    ] {
        let restore = server.overwrite(file, content);
        names(server.reload(&[]).unwrap_err(), file);
        restore.undo();
    }
    names(server.reload(&[&ca.with_crl_text("nothing".to_owned())]).unwrap_err(), "staff.crl");
    let mut missing = server.settings(&[&ca]);
    missing.certificate = server.folder.path().join("missing.pem");
    names(TlsState::load(&missing).unwrap_err(), "missing.pem");
    // A key that is not the certificate's.
    let restore = server.overwrite("server.key", &rcgen::KeyPair::generate().unwrap().serialize_pem());
    names(server.reload(&[]).unwrap_err(), "server.key");
    restore.undo();
    assert!(TlsState::load(&server.settings(&[])).is_err(), "no CA would mean that nobody gets in");
    assert!(TlsState::load(&server.settings(&[&ca, &ca])).is_err(), "a CA's name must be its own");

    assert_eq!(client.get("/").await.0, 200, "a reload that failed changed something");
}

#[tokio::test]
async fn connections_are_limited_per_peer_and_in_all() {
    let ca = Ca::new("staff");
    let limits =
        TransportLimits { connections_max: 3, connections_per_peer_max: 2, ..TransportLimits::default() };
    let server = Server::start(&[&ca], limits).await;
    let client = ca.client().uri(ALICE);
    let from = |host: &'static str| server.connect_from(&client, host);
    let first = from("127.0.0.1").await.unwrap();
    let mut second = from("127.0.0.1").await.unwrap();
    assert!(from("127.0.0.1").await.is_err(), "a third connection of one peer");
    let mut other = from("127.0.0.2").await.unwrap();
    assert!(from("127.0.0.3").await.is_err(), "a fourth connection in all");
    assert_eq!((second.get("/").await.0, other.get("/").await.0), (200, 200));
    drop(first);
    eventually(|| server.gate.open() == 2).await;
    assert!(from("127.0.0.1").await.is_ok(), "a closed connection gives its place back");
}

#[tokio::test]
async fn a_handshake_has_a_deadline() {
    let ca = Ca::new("staff");
    let limits = TransportLimits { handshake_timeout_ms: 100, ..TransportLimits::default() };
    let server = Server::start(&[&ca], limits).await;
    let mut silent = TcpStream::connect(server.address).await.unwrap();
    let mut byte = [0];
    let closed = tokio::time::timeout(LONG, silent.read(&mut byte)).await.expect("the connection stays open");
    assert!(matches!(closed, Ok(0) | Err(_)));
    eventually(|| server.gate.open() == 0).await;
}

#[tokio::test]
async fn slow_peers_keep_nobody_waiting() {
    let (server, ca) = staffed().await;
    let client = ca.client().uri(ALICE);
    // Silent before TLS, in the middle of a record, and after the handshake.
    let _silent = TcpStream::connect(server.address).await.unwrap();
    let mut half = TcpStream::connect(server.address).await.unwrap();
    half.write_all(&[0x16, 3, 1, 2, 0, 1]).await.unwrap();
    let _mute = server.handshake(&client, "127.0.0.1").await.unwrap();
    // A request that does not end, on the same connection as one that does.
    let mut connected = server.connect(&client).await.unwrap();
    let slow = connected.start("/hold");
    server.held(1).await;
    assert_eq!(connected.get("/").await.0, 200);
    assert_eq!(server.connect(&client).await.unwrap().get("/").await.0, 200);
    server.release(1);
    assert_eq!(Connected::answer(slow).await.0, 200);
}

#[tokio::test]
async fn streams_beyond_the_limit_wait_their_turn() {
    let ca = Ca::new("staff");
    let limits = TransportLimits { streams_per_connection_max: 2, ..TransportLimits::default() };
    let server = Server::start(&[&ca], limits).await;
    let mut client = server.connect(&ca.client().uri(ALICE)).await.unwrap();
    assert_eq!(client.get("/").await.0, 200, "now the client has the server's settings");
    let mut requests = Vec::new();
    for _ in 0..4 {
        requests.push(client.start("/hold"));
    }
    server.held(2).await;
    tokio::time::sleep(Duration::from_millis(50)).await;
    assert_eq!(server.holding(), 2, "more requests than streams");
    server.release(4);
    for request in requests {
        assert_eq!(Connected::answer(request).await.0, 200);
    }
}

#[tokio::test]
async fn headers_are_limited() {
    let (server, ca) = staffed().await;
    let mut client = server.connect(&ca.client().uri(ALICE)).await.unwrap();
    assert_eq!(client.get_with_header("/", 10 << 10).await.unwrap(), 200);
    let refused = client.get_with_header("/", 40 << 10).await;
    assert!(matches!(refused, Err(_) | Ok(431)), "{refused:?}");
    assert_eq!(server.connect(&ca.client().uri(ALICE)).await.unwrap().get("/").await.0, 200);
}

#[tokio::test]
async fn rapid_reset_costs_the_connection() {
    const GOAWAY: u8 = 7;
    const ENHANCE_YOUR_CALM: [u8; 4] = [0, 0, 0, 0xb];
    let (server, ca) = staffed().await;
    let client = ca.client().uri(ALICE);
    let mut stream = server.handshake(&client, "127.0.0.1").await.unwrap();
    // The preface, empty SETTINGS, then requests that are reset at once:
    // HEADERS (:method GET, :scheme https, :path /, :authority x), RST_STREAM
    // (CANCEL).
    let mut bytes = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0".to_vec();
    for index in 0..5000_u32 {
        let id = (2 * index + 1).to_be_bytes();
        bytes.extend([0, 0, 6, 1, 5].iter().chain(&id).chain(&[0x82, 0x87, 0x84, 0x41, 1, b'x']));
        bytes.extend([0, 0, 4, 3, 0].iter().chain(&id).chain(&[0, 0, 0, 8]));
    }
    let (mut read, mut write) = tokio::io::split(&mut stream);
    let mut answer = Vec::new();
    let (_, _) = tokio::time::timeout(LONG, async {
        // The server may close before it has read everything.
        tokio::join!(write.write_all(&bytes), read.read_to_end(&mut answer))
    })
    .await
    .expect("the connection stays open");
    let mut frames = answer.as_slice();
    let mut calmed = false;
    while let [a, b, c, kind, _flags, _, _, _, _, rest @ ..] = frames {
        let length = u32::from_be_bytes([0, *a, *b, *c]) as usize;
        let Some((payload, rest)) = rest.split_at_checked(length) else { break };
        calmed |= *kind == GOAWAY && payload.get(4..8) == Some(&ENHANCE_YOUR_CALM);
        frames = rest;
    }
    assert!(calmed, "no GOAWAY with ENHANCE_YOUR_CALM");
    assert_eq!(server.connect(&client).await.unwrap().get("/").await.0, 200);
}

#[tokio::test]
async fn old_and_idle_connections_are_told_to_go() {
    let ca = Ca::new("staff");
    let idle = TransportLimits { connection_idle_ms: 200, ..TransportLimits::default() };
    let old = TransportLimits { connection_age_ms: 200, ..TransportLimits::default() };
    for (what, limits) in [("idle", idle), ("old", old)] {
        let server = Server::start(&[&ca], limits).await;
        let mut client = server.connect(&ca.client().uri(ALICE)).await.unwrap();
        let slow = client.start("/hold");
        server.held(1).await;
        // Longer than either limit: what is in flight is left alone.
        tokio::time::sleep(Duration::from_millis(400)).await;
        server.release(1);
        assert_eq!(Connected::answer(slow).await.0, 200, "{what}");
        tokio::time::timeout(LONG, client.closed()).await.expect("the connection stays open");
        eventually(|| server.gate.open() == 0).await;
    }
}

#[tokio::test]
async fn a_drain_lets_requests_in_flight_finish() {
    let (server, ca) = staffed().await;
    let mut client = server.connect(&ca.client().uri(ALICE)).await.unwrap();
    let slow = client.start("/hold");
    server.held(1).await;
    server.shutdown.cancel();
    tokio::time::timeout(LONG, async {
        while TcpStream::connect(server.address).await.is_ok() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    })
    .await
    .expect("the listener stays open");
    assert!(!server.task.is_finished(), "the drain must wait");
    server.release(1);
    assert_eq!(Connected::answer(slow).await, (200, "held".to_owned()));
    assert_eq!(server.finish().await, 0, "no connection was to be cut");
}

#[tokio::test]
async fn a_drain_has_an_end() {
    let ca = Ca::new("staff");
    let server = Server::start_with(&[&ca], TransportLimits::default(), Duration::from_millis(100)).await;
    let mut client = server.connect(&ca.client().uri(ALICE)).await.unwrap();
    let _stuck = client.start("/hold");
    server.held(1).await;
    server.shutdown.cancel();
    assert_eq!(server.finish().await, 1);
}

#[tokio::test]
async fn a_unix_peer_is_its_uid() {
    use std::os::unix::fs::PermissionsExt;
    let folder = folder();
    let path = folder.path().join("grpc.sock");
    let bind = Bind::Unix { path: path.clone(), mode: 0o660 };
    let server = Server::start_on(&bind, &[], TransportLimits::default(), LONG).await;
    assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o7777, 0o660);

    let mut client = Connected::unix(&path).await;
    assert_eq!(client.get("/").await, (200, "local".to_owned()));
    let expected = format!("{}|{}", rustix::process::getuid().as_raw(), std::process::id());
    assert_eq!(client.get("/peer").await, (200, expected));

    assert_eq!(
        Listener::bind(&bind).await.unwrap_err().kind(),
        std::io::ErrorKind::AddrInUse,
        "somebody listens there"
    );
    assert_eq!(Connected::unix(&path).await.get("/").await.0, 200, "and still does");
    drop(client);
    server.shutdown.cancel();
    server.finish().await;
    assert!(!path.exists(), "the socket file is left behind");
}

#[tokio::test]
async fn only_a_stale_socket_is_replaced() {
    let folder = folder();
    let path = folder.path().join("grpc.sock");
    let bind = Bind::Unix { path: path.clone(), mode: 0o600 };
    drop(std::os::unix::net::UnixListener::bind(&path).unwrap());
    assert!(path.exists(), "a dead process leaves its socket file");
    drop(Listener::bind(&bind).await.unwrap());

    std::fs::write(&path, "precious").unwrap();
    assert_eq!(Listener::bind(&bind).await.unwrap_err().kind(), std::io::ErrorKind::AddrInUse);
    assert_eq!(std::fs::read_to_string(&path).unwrap(), "precious");
}
