//! Three HSMs that hold the same keys.

use std::sync::Arc;
use std::time::Duration;

use strongroom::hsm::{
    Cluster, ClusterIdentity, ClusterSettings, KeyRules, MemberSettings, MemberState, Modules, TokenAccess,
    bring_wrapping_key, ceremony,
};

use crate::hsm::{PIN, Token, fast};

pub const SO_PIN: &str = "12345678";

/// Each key on two members, or it is not made.
pub const RESIDENT: KeyRules =
    KeyRules { resident: true, required_copies: 2, allow_single_copy: false, replicates_itself: false };

/// Tokens with a cluster's wrapping key, and the shims before them: module `0`
/// is that of the first.
pub struct Hsms {
    pub tokens: Vec<Token>,
    pub modules: Arc<Modules>,
    pub identity: ClusterIdentity,
}

impl Drop for Hsms {
    fn drop(&mut self) {
        self.modules.finalise();
    }
}

impl Hsms {
    /// The first makes the wrapping key, the others get it.
    pub fn new(count: usize) -> Hsms {
        let tokens: Vec<Token> = (1..=count).map(Token::new).collect();
        let bare: Vec<_> = tokens.iter().map(Token::module).collect();
        let bare = Modules::new(named(bare), fast());
        let identity = ceremony(&bare, "0", &tokens[0].uri, &PIN.into()).unwrap();
        for target in 1..count {
            let (source, target) = (access(&tokens, 0), access(&tokens, target));
            let id = bring_wrapping_key(&bare, &source, &SO_PIN.into(), &target).unwrap();
            assert_eq!(id, identity.wrapping_key);
        }
        bare.finalise();
        let modules = Modules::new(named(tokens.iter().map(Token::shimmed).collect()), fast());
        Hsms { tokens, modules, identity }
    }

    /// A cluster of the first `count`.
    pub fn start(&self, count: usize, settings: ClusterSettings, rules: KeyRules) -> Arc<Cluster> {
        let members = (0..count).map(|index| (self.member(index), PIN.into())).collect();
        Cluster::start(&self.modules, members, self.identity.clone(), settings, rules).unwrap()
    }

    pub fn member(&self, index: usize) -> MemberSettings {
        MemberSettings { module: index.to_string(), token: self.uri(index), pin: "crypto-user".into() }
    }

    pub fn uri(&self, index: usize) -> String {
        self.tokens[index].uri.to_string()
    }

    /// Takes a token's folder away.
    pub fn kill(&self, index: usize) {
        std::fs::rename(self.tokens[index].tokens(), self.tokens[index].away()).unwrap();
    }

    /// Puts it back.
    pub fn revive(&self, index: usize) {
        std::fs::rename(self.tokens[index].away(), self.tokens[index].tokens()).unwrap();
    }
}

/// A token without the shim, as another process reaches it.
pub fn access(tokens: &[Token], index: usize) -> TokenAccess {
    TokenAccess { module: index.to_string(), token: tokens[index].uri.clone(), pin: PIN.into() }
}

pub fn named<T>(all: Vec<T>) -> std::collections::BTreeMap<String, T> {
    all.into_iter().enumerate().map(|(index, each)| (index.to_string(), each)).collect()
}

/// A hung call is given up soon.
pub fn impatient() -> ClusterSettings {
    ClusterSettings { failover_timeout_ms: 250, call_timeout_ms: 2_000, ..fast() }
}

/// No probe comes between a test's calls.
pub fn unprobed() -> ClusterSettings {
    ClusterSettings { probe_interval_ms: 600_000, call_timeout_ms: 60_000, ..impatient() }
}

/// Waits until a member is so; its reason.
pub async fn until(cluster: &Cluster, uri: &str, state: MemberState) -> String {
    let mut health = cluster.watch();
    let is = |member: &strongroom::hsm::MemberHealth| member.uri == uri && member.state == state;
    let reached = health.wait_for(|members| members.iter().any(is));
    match tokio::time::timeout(Duration::from_secs(60), reached).await {
        Ok(Ok(members)) => {
            members.iter().find(|member| is(member)).unwrap().reason.clone().unwrap_or_default()
        }
        _ => panic!("{uri} is never {state:?}: {:?}", cluster.watch().borrow()),
    }
}

/// Waits until all are at work.
pub async fn all_serve(cluster: &Cluster) {
    let uris: Vec<String> = cluster.members().into_iter().map(|member| member.uri).collect();
    for uri in uris {
        until(cluster, &uri, MemberState::Serving).await;
    }
}
