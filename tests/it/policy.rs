//! Who may do what. The cases are files in `tests/policy`, for people to read:
//!
//! - `who-*.json`: a key policy and identity policies, and what each caller is
//!   told. The key is KEY in account 111122223333.
//! - `conditions.json`: whether an Allow, and whether a Deny, with this condition
//!   applies to a request with this context.
//! - `operations.txt`: every operation × who may, and by what.
//! - `invalid.json`: documents that are no policies, and why.

use std::collections::{BTreeMap, HashMap};
use std::path::Path;

use proptest::prelude::*;
use proptest::sample::select;
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use strongroom::error::Error;
use strongroom::operation::Operation;
use strongroom::ops::{self, Visitor};
use strongroom::policy::{
    CallerKind, Constraints, Context, Decision, Grant, POLICY_LIMIT_BYTES, Policy, PrincipalRef, Request,
    Terms, authorize, default_key_policy, would_lock_out,
};
use strongroom::proto::kms;
use strongroom::service::Service;
use strongroom::wire::Text;

const ACCOUNT: &str = "111122223333";
const OTHER: &str = "444455556666";
const KEY: &str = "arn:aws:kms:us-east-1:111122223333:key/1234abcd-12ab-34cd-56ef-1234567890ab";

/// The callers by the names that the files give them.
fn caller(name: &str) -> PrincipalRef<'static> {
    let (arn, account, kind, role_arn) = match name {
        "root" => ("arn:aws:iam::111122223333:root", ACCOUNT, CallerKind::Root, None),
        "alice" => ("arn:aws:iam::111122223333:user/alice", ACCOUNT, CallerKind::User, None),
        "bob" => ("arn:aws:iam::111122223333:user/staff/bob", ACCOUNT, CallerKind::User, None),
        "star" => ("arn:aws:iam::111122223333:user/*", ACCOUNT, CallerKind::User, None),
        "deployer" => (
            "arn:aws:sts::111122223333:assumed-role/deployer/run-1",
            ACCOUNT,
            CallerKind::RoleSession,
            Some("arn:aws:iam::111122223333:role/ci/deployer"),
        ),
        "other root" => ("arn:aws:iam::444455556666:root", OTHER, CallerKind::Root, None),
        "other carol" => ("arn:aws:iam::444455556666:user/carol", OTHER, CallerKind::User, None),
        "s3" => ("s3.amazonaws.com", "", CallerKind::Service, None),
        _ => panic!("no caller is named {name}"),
    };
    PrincipalRef { arn, account, kind, role_arn }
}

fn file<T: DeserializeOwned>(path: &Path) -> T {
    let text = std::fs::read_to_string(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    serde_json::from_str(&text).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

fn folder() -> std::path::PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/policy")
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Who {
    #[serde(rename = "about")]
    _about: String,
    /// Null for what has no policy of its own.
    key_policy: Value,
    #[serde(default)]
    identity_policies: BTreeMap<String, Vec<Value>>,
    /// The key's grants by their ids.
    #[serde(default)]
    grants: BTreeMap<String, Terms>,
    cases: Vec<WhoCase>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct WhoCase {
    who: String,
    action: String,
    /// The key where it is absent.
    on: Option<String>,
    #[serde(default)]
    with: BTreeMap<String, Values>,
    encryption_context: Option<HashMap<String, String>>,
    /// The grant that CreateGrant is to make.
    granting: Option<Terms>,
    expect: String,
    /// AccessDeniedException's message.
    message: Option<String>,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum Values {
    One(String),
    Several(Vec<String>),
}

fn context(with: &BTreeMap<String, Values>) -> Context<'_> {
    let mut context = Context::new();
    for (key, values) in with {
        match values {
            Values::One(value) => context.insert(key, value),
            Values::Several(values) => values.iter().for_each(|value| context.insert(key, value)),
        }
    }
    context
}

#[test]
fn each_caller_is_told_what_the_files_say() {
    let mut wrong = Vec::new();
    let mut seen = 0;
    for entry in std::fs::read_dir(folder()).expect("tests/policy") {
        let path = entry.expect("an entry").path();
        let name = path.file_name().and_then(|name| name.to_str()).expect("a name").to_owned();
        if !name.starts_with("who-") {
            continue;
        }
        let who: Who = file(&path);
        let key_policy = (!who.key_policy.is_null())
            .then(|| Policy::parse_key_policy(&who.key_policy.to_string()).expect(&name));
        let parse = |policy: &Value| Policy::parse_identity_policy(&policy.to_string()).expect(&name);
        let grant = |(id, terms): (&String, &Terms)| Grant::new(id.clone(), terms.clone()).expect(id);
        let grants: Vec<Grant> = who.grants.iter().map(grant).collect();
        for case in &who.cases {
            let identity: Vec<_> =
                who.identity_policies.get(&case.who).into_iter().flatten().map(parse).collect();
            let context = context(&case.with);
            let request = Request {
                principal: caller(&case.who),
                action: &case.action,
                resource: case.on.as_deref().unwrap_or(KEY),
                resource_account: ACCOUNT,
                context: &context,
                encryption_context: case.encryption_context.as_ref(),
                granting: case.granting.as_ref(),
            };
            let decision = authorize(&request, key_policy.as_ref(), &grants, &identity);
            let message = match decision {
                Decision::Denied(reason) => Some(reason.message(&request)),
                Decision::Allowed { .. } => None,
            };
            seen += 1;
            if decision.to_string() != case.expect {
                wrong.push(format!("{name}: {} {}: {decision}, not {}", case.who, case.action, case.expect));
            }
            if case.message.is_some() && message != case.message {
                wrong.push(format!("{name}: {} {}: {message:?}", case.who, case.action));
            }
        }
    }
    assert!(seen > 0, "no case was found");
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

/// Who asks, in the columns of operations.txt.
const COLUMNS: [&str; 8] =
    ["root", "identity", "key-policy", "grant", "other-both", "other-key-policy", "service", "denied"];

/// Every KMS operation's row of operations.txt.
#[derive(Default)]
struct Rows(Vec<String>);

impl Visitor for Rows {
    fn visit<O>(&mut self)
    where
        O: Operation,
        O::Request: prost::Message,
        O::Response: prost::Message + Default,
    {
        if O::SERVICE == Service::Kms {
            let on = std::any::type_name::<O::On>();
            let may = |who: &&str| if allowed(O::ACTION, on, who) { "yes" } else { "no" };
            let cells: Vec<String> = COLUMNS.iter().map(|who| format!("{:17}", may(who))).collect();
            self.0.push(format!("{:36}{}", O::NAME, cells.concat()).trim_end().to_owned());
        }
    }
}

/// Whether an action is allowed to the caller of a column: by what the column
/// names, which allows everything, and by nothing else.
fn allowed(action: &str, on: &str, who: &str) -> bool {
    let everything = |principal: Value| json!({"Effect": "Allow", "Principal": principal, "Action": "kms:*", "Resource": "*"});
    let (name, arn) = match who {
        "root" => ("root", json!({"AWS": ACCOUNT})),
        "other-both" | "other-key-policy" => {
            ("other carol", json!({"AWS": "arn:aws:iam::444455556666:user/carol"}))
        }
        "service" => ("s3", json!({"Service": "s3.amazonaws.com"})),
        _ => ("alice", json!({"AWS": "arn:aws:iam::111122223333:user/alice"})),
    };
    let deny = json!({"Effect": "Deny", "Principal": "*", "Action": action, "Resource": "*"});
    let mine = everything(json!({"AWS": ACCOUNT}));
    let statements = match who {
        "identity" | "grant" | "root" => vec![mine],
        "denied" => vec![everything(arn), deny.clone()],
        _ => vec![everything(arn)],
    };
    let retires = on.contains("Retirable");
    // Who may retire a grant, a key's policy does not say.
    let key = if retires {
        Policy::parse_key_policy(&default_key_policy(ACCOUNT)).unwrap()
    } else {
        key_policy(&statements)
    };
    let identity = match who {
        "identity" | "other-both" => vec![identity_policy(&[everything(json!("*"))])],
        "denied" => vec![identity_policy(&[everything(json!("*")), deny])],
        _ => Vec::new(),
    };
    let terms = Terms {
        grantee: caller("alice").arn.to_owned(),
        operations: kms::GrantOperation::TEXTS.iter().map(|(text, _)| (*text).to_owned()).collect(),
        constraints: Constraints::default(),
    };
    let grants: Vec<Grant> =
        (who == "grant").then(|| Grant::new("g".into(), terms.clone()).unwrap()).into_iter().collect();
    let context = Context::new();
    let of_key = retires || on.contains("LoadedKey");
    let request = Request {
        principal: caller(name),
        action,
        resource: if of_key { KEY } else { "*" },
        resource_account: if of_key || who != "other-both" { ACCOUNT } else { OTHER },
        context: &context,
        encryption_context: None,
        granting: Some(&terms),
    };
    authorize(&request, of_key.then_some(&key), &grants, &identity).is_allowed()
}

#[test]
fn each_operation_is_allowed_to_whom_the_file_says() {
    let mut rows = Rows::default();
    ops::each(&mut rows);
    let header = format!("{:36}{}", "", COLUMNS.map(|who| format!("{who:17}")).concat());
    let found = format!("{}\n{}\n", header.trim_end(), rows.0.join("\n"));
    let text = std::fs::read_to_string(folder().join("operations.txt")).unwrap_or_default();
    let written: Vec<&str> = text.lines().filter(|line| !line.starts_with('#')).collect();
    assert_eq!(written, found.lines().collect::<Vec<_>>(), "operations.txt should be:\n{found}");
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct ConditionCase {
    case: String,
    condition: Value,
    #[serde(default)]
    with: BTreeMap<String, Values>,
    #[serde(default = "newest")]
    version: String,
    allow: bool,
    deny: bool,
}

fn newest() -> String {
    "2012-10-17".to_owned()
}

#[test]
fn each_condition_applies_as_the_file_says() {
    let cases: Vec<ConditionCase> = file(&folder().join("conditions.json"));
    let mut wrong = Vec::new();
    for case in &cases {
        let context = context(&case.with);
        let request = Request {
            principal: caller("alice"),
            action: "kms:Encrypt",
            resource: KEY,
            resource_account: ACCOUNT,
            context: &context,
            encryption_context: None,
            granting: None,
        };
        let allowed = |statements: Value| {
            let policy = json!({"Version": case.version, "Statement": statements}).to_string();
            let policy =
                Policy::parse_key_policy(&policy).unwrap_or_else(|error| panic!("{}: {error}", case.case));
            authorize(&request, Some(&policy), &[] as &[Grant], &[] as &[Policy]).is_allowed()
        };
        let statement = |effect: &str| json!({"Effect": effect, "Principal": "*", "Action": "*", "Resource": "*", "Condition": case.condition});
        let everything = json!({"Effect": "Allow", "Principal": "*", "Action": "*", "Resource": "*"});
        let allow = allowed(json!([statement("Allow")]));
        let deny = !allowed(json!([statement("Deny"), everything]));
        if (allow, deny) != (case.allow, case.deny) {
            wrong.push(format!("{}: allow {allow}, deny {deny}", case.case));
        }
    }
    assert!(!cases.is_empty());
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Invalid {
    /// JSON text where a value cannot say it.
    key_policy: Option<Value>,
    identity_policy: Option<Value>,
    error: String,
}

#[test]
fn what_is_no_policy_is_refused_with_its_reason() {
    let cases: Vec<Invalid> = file(&folder().join("invalid.json"));
    let text = |value: &Value| value.as_str().map_or_else(|| value.to_string(), str::to_owned);
    let mut wrong = Vec::new();
    for case in &cases {
        let parsed = match (&case.key_policy, &case.identity_policy) {
            (Some(policy), None) => Policy::parse_key_policy(&text(policy)),
            (None, Some(policy)) => Policy::parse_identity_policy(&text(policy)),
            _ => panic!("a case has one policy: {}", case.error),
        };
        match parsed.map_err(|error| error.to_string()) {
            Err(error) if error == case.error => {}
            other => wrong.push(format!("{}: {:?}", case.error, other.err())),
        }
    }
    assert!(!cases.is_empty());
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn a_policy_may_have_32768_bytes() {
    let exception = |size: usize| {
        let policy = format!("{:size$}", default_key_policy(ACCOUNT));
        Policy::parse_key_policy(&policy).map_err(Error::from).map_err(|error| error.exception.name()).err()
    };
    assert_eq!(exception(POLICY_LIMIT_BYTES), None);
    assert_eq!(exception(POLICY_LIMIT_BYTES + 1), Some("LimitExceededException"));
    let malformed = Error::from(Policy::parse_key_policy("").expect_err("nothing is no policy"));
    assert_eq!(malformed.exception.name(), "MalformedPolicyDocumentException");
}

#[test]
fn a_policy_tells_the_context_keys_that_it_reads() {
    let policy = json!({"Version": "2012-10-17", "Statement": {
        "Effect": "Allow", "Action": "kms:*",
        "Resource": "arn:aws:kms:*:*:alias/${aws:PrincipalTag/team, 'x'}-${aws:username}",
        "Condition": {
            "StringLike": {"kms:ViaService": "${aws:RequestedRegion}*", "aws:PrincipalArn": "*"},
            "Null": {"aws:SourceIp": true},
        }
    }});
    let policy = Policy::parse_identity_policy(&policy.to_string()).expect("a policy");
    let keys: Vec<_> = policy.context_keys().collect();
    assert_eq!(keys, ["aws:PrincipalTag/team", "kms:ViaService", "aws:RequestedRegion", "aws:SourceIp"]);
}

#[test]
fn a_policy_that_locks_its_author_out_is_noticed() {
    let context = Context::new();
    let locked_out = |who: &str, key_policy: &str, identity: &[Policy]| {
        let request = Request {
            principal: caller(who),
            action: "kms:CreateKey",
            resource: KEY,
            resource_account: ACCOUNT,
            context: &context,
            encryption_context: None,
            granting: None,
        };
        would_lock_out(&Policy::parse_key_policy(key_policy).expect("a policy"), &request, identity)
    };
    let default = default_key_policy(ACCOUNT);
    let administrator = Policy::parse_identity_policy(
        &json!({"Statement": {"Effect": "Allow", "Action": "kms:Put*", "Resource": "*"}}).to_string(),
    );
    let administrator = [administrator.expect("a policy")];
    assert!(!locked_out("root", &default, &[]));
    assert!(!locked_out("alice", &default, &administrator));
    assert!(locked_out("alice", &default, &[]));
    assert!(locked_out("root", &default_key_policy(OTHER), &administrator));
}

/// Statements drawn from few values, so that they often meet the request.
fn statement() -> impl Strategy<Value = Value> {
    let principal = select(vec![
        json!("*"),
        json!({"AWS": ACCOUNT}),
        json!({"AWS": "arn:aws:iam::111122223333:user/alice"}),
        json!({"AWS": ["arn:aws:iam::111122223333:role/ci/deployer", "444455556666"]}),
        json!({"Service": "s3.amazonaws.com"}),
    ]);
    let action = select(vec!["*", "kms:*", "kms:Encrypt", "kms:Dec*"]);
    let resource = select(vec!["*", KEY, "arn:aws:kms:*:*:alias/*"]);
    let condition = select(vec![
        json!({}),
        json!({"StringEquals": {"kms:ViaService": "s3"}}),
        json!({"StringNotEquals": {"kms:ViaService": "${aws:PrincipalTag/x}"}}),
    ]);
    (any::<bool>(), principal, any::<bool>(), action, any::<bool>(), resource, condition).prop_map(
        |(allow, principal, not_action, action, not_resource, resource, condition)| {
            let mut statement = json!({
                "Effect": if allow { "Allow" } else { "Deny" },
                "Principal": principal,
                "Condition": condition,
            });
            statement[if not_action { "NotAction" } else { "Action" }] = json!(action);
            statement[if not_resource { "NotResource" } else { "Resource" }] = json!(resource);
            statement
        },
    )
}

fn statements() -> impl Strategy<Value = Vec<Value>> {
    proptest::collection::vec(statement(), 1..5)
}

fn anybody() -> impl Strategy<Value = &'static str> {
    select(vec!["root", "alice", "bob", "deployer", "other root", "other carol", "s3"])
}

fn key_policy(statements: &[Value]) -> Policy {
    Policy::parse_key_policy(&json!({"Version": "2012-10-17", "Statement": statements}).to_string())
        .expect("a key policy")
}

fn identity_policy(statements: &[Value]) -> Policy {
    let mut statements = statements.to_vec();
    for statement in statements.iter_mut().filter_map(Value::as_object_mut) {
        statement.remove("Principal");
    }
    Policy::parse_identity_policy(&json!({"Version": "2012-10-17", "Statement": statements}).to_string())
        .expect("an identity policy")
}

fn may(who: &str, via: Option<&'static str>, key: &[Value], identity: &[Value]) -> bool {
    may_by(who, via, key, identity, &[])
}

/// A grant as the evaluator sees it: to whom, whether of Encrypt, and whether
/// under a constraint that no request here meets.
type Given = (&'static str, bool, bool);

fn grants() -> impl Strategy<Value = Vec<Given>> {
    proptest::collection::vec((anybody(), any::<bool>(), any::<bool>()), 0..4)
}

fn may_by(who: &str, via: Option<&'static str>, key: &[Value], identity: &[Value], given: &[Given]) -> bool {
    let grants: Vec<Grant> = given
        .iter()
        .map(|(to, encrypts, constrained)| {
            let operation = if *encrypts { "Encrypt" } else { "Decrypt" };
            let terms = Terms {
                grantee: caller(to).arn.to_owned(),
                operations: [operation.to_owned()].into(),
                constraints: Constraints {
                    encryption_context_equals: constrained.then(|| [("a".to_owned(), "b".to_owned())].into()),
                    ..Constraints::default()
                },
            };
            Grant::new("g".to_owned(), terms).expect("a grant")
        })
        .collect();
    let mut context = Context::new();
    if let Some(via) = via {
        context.insert("kms:ViaService", via);
    }
    let request = Request {
        principal: caller(who),
        action: "kms:Encrypt",
        resource: KEY,
        resource_account: ACCOUNT,
        context: &context,
        encryption_context: None,
        granting: None,
    };
    authorize(&request, Some(&key_policy(key)), &grants, &[identity_policy(identity)]).is_allowed()
}

fn of_effect(statements: &[Value], effect: &str) -> Vec<Value> {
    statements.iter().filter(|statement| statement["Effect"] == effect).cloned().collect()
}

proptest! {
    #[test]
    fn a_grant_allows_its_grantee_and_outweighs_no_deny(
        who in anybody(),
        key in statements(),
        identity in statements(),
        (given, shuffled) in grants().prop_flat_map(|list| (Just(list.clone()), Just(list).prop_shuffle())),
    ) {
        let by = |key: &[Value], given: &[Given]| may_by(who, None, key, &identity, given);
        // In whatever order; never less than without them; never against a Deny.
        prop_assert_eq!(by(&key, &given), by(&key, &shuffled));
        prop_assert!(by(&key, &given) || !by(&key, &[]));
        let deny = json!({"Effect": "Deny", "Principal": "*", "Action": "kms:Encrypt", "Resource": "*"});
        prop_assert!(!by(&[key.clone(), vec![deny]].concat(), &given));
        // Only those of this operation, for this caller, whose constraints are met.
        let counts = |(to, encrypts, constrained): &&Given| {
            let account = to.ends_with("root") && caller(to).account == caller(who).account;
            *encrypts && !*constrained && (*to == who || account)
        };
        let counting: Vec<Given> = given.iter().filter(counts).copied().collect();
        prop_assert_eq!(by(&key, &given), by(&key, &counting));
        let denied = of_effect(&key, "Deny").len() + of_effect(&identity, "Deny").len() > 0;
        let own = given.iter().any(|grant| grant.0 == who && counts(&grant));
        if own && !denied && caller(who).account == ACCOUNT {
            prop_assert!(by(&key, &given));
        }
    }

    #[test]
    fn the_order_of_statements_does_not_matter(
        who in anybody(),
        via in proptest::option::of(select(vec!["s3", "ec2"])),
        (key, shuffled_key) in statements().prop_flat_map(|list| (Just(list.clone()), Just(list).prop_shuffle())),
        (identity, shuffled_identity) in statements().prop_flat_map(|list| (Just(list.clone()), Just(list).prop_shuffle())),
    ) {
        prop_assert_eq!(may(who, via, &key, &identity), may(who, via, &shuffled_key, &shuffled_identity));
    }

    #[test]
    fn a_deny_that_covers_the_caller_wins(
        who in anybody(),
        mut key in statements(),
        mut identity in statements(),
        in_key: bool,
        at in 0_usize..5,
        action in select(vec!["*", "kms:ENCRYPT", "kms:?ncrypt"]),
    ) {
        let list = if in_key { &mut key } else { &mut identity };
        let deny = json!({"Effect": "Deny", "Principal": "*", "Action": action, "Resource": "*"});
        list.insert(at.min(list.len()), deny);
        prop_assert!(!may(who, None, &key, &identity));
    }

    #[test]
    fn nothing_is_allowed_without_an_allow(who in anybody(), key in statements(), identity in statements()) {
        let (denies, everything) = (of_effect(&key, "Deny"), json!({"Effect": "Allow", "Action": "*", "Resource": "*"}));
        if !denies.is_empty() {
            // Whatever the identity policy says, the key policy is silent.
            prop_assert!(!may(who, None, &denies, &[everything]));
        }
        // The key policy allows the account only, the identity policy nothing.
        let account = json!({"Effect": "Allow", "Principal": {"AWS": [ACCOUNT, OTHER]}, "Action": "*", "Resource": "*"});
        let denies = of_effect(&identity, "Deny");
        if !denies.is_empty() && !who.ends_with("root") {
            prop_assert!(!may(who, None, &[account], &denies));
        }
    }

    #[test]
    fn one_more_deny_never_allows_and_one_more_allow_never_denies(
        who in anybody(),
        via in proptest::option::of(select(vec!["s3", "ec2"])),
        key in statements(),
        identity in statements(),
        more in statement(),
    ) {
        let before = may(who, via, &key, &identity);
        let mut longer = key.clone();
        longer.push(more.clone());
        let after = may(who, via, &longer, &identity);
        let expected = if more["Effect"] == "Allow" { before.max(after) } else { before.min(after) };
        prop_assert_eq!(after, expected);
    }

    #[test]
    fn any_text_is_parsed_or_refused(text in any::<String>(), at in 0_usize..200, with in "[\\PC]{0,3}") {
        let default = default_key_policy(ACCOUNT);
        let cut = default.get(..at).unwrap_or(&default);
        let spliced = format!("{cut}{with}{}", default.get(at..).unwrap_or_default());
        for text in [text.as_str(), cut, &spliced] {
            let _ = Policy::parse_key_policy(text);
            let _ = Policy::parse_identity_policy(text);
        }
    }

    #[test]
    fn an_element_that_is_not_known_is_never_accepted(name in "[A-Za-z]{1,14}", at in 0_usize..3) {
        let known = [
            "Version", "Id", "Statement", "Sid", "Effect", "Principal", "NotPrincipal", "Action", "NotAction",
            "Resource", "NotResource", "Condition",
        ];
        prop_assume!(!known.contains(&name.as_str()));
        let mut policy: Value = serde_json::from_str(&default_key_policy(ACCOUNT)).expect("JSON");
        match at {
            0 => policy[&name] = json!("x"),
            1 => policy["Statement"][0][&name] = json!({}),
            _ => policy["Statement"][0]["Condition"] = json!({&name: {"aws:username": "x"}}),
        }
        prop_assert!(Policy::parse_key_policy(&policy.to_string()).is_err());
    }
}
