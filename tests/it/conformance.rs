//! `strongroom hsm check` on SoftHSM2, and on HSMs that fail as they are told.

use std::collections::BTreeMap;
use std::fs;
use std::process::{Command, Output};

use serde_json::Value;
use strongroom::hsm::ModuleSettings;

use crate::hsm::{PIN, Token};

/// Of the tokens of the fixture.
const SO_PIN: &str = "12345678";

/// Tries a token by the path of its library, without a configuration.
fn check(token: &Token, module: &ModuleSettings, more: &[&str]) -> Output {
    let pin = token.rules().with_file_name("pin");
    fs::write(&pin, PIN).unwrap();
    fs::write(token.rules().with_file_name("so.pin"), SO_PIN).unwrap();
    Command::new(env!("CARGO_BIN_EXE_strongroom"))
        .args(["hsm", "check"])
        .arg(&module.library)
        .arg("--pin-file")
        .arg(&pin)
        .args(more)
        .envs(&module.environment)
        .output()
        .unwrap()
}

fn with_so_pin(token: &Token, module: &ModuleSettings) -> (bool, Value) {
    let so_pin = token.rules().with_file_name("so.pin").display().to_string();
    let output = check(token, module, &["-o", "json", "--so-pin-file", &so_pin]);
    let report: Value = serde_json::from_slice(&output.stdout)
        .unwrap_or_else(|_| panic!("{}", String::from_utf8_lossy(&output.stderr)));
    assert_eq!(report["Fits"], output.status.success(), "{report:#}");
    (output.status.success(), report)
}

/// What does not work, with why.
fn failing(report: &Value) -> BTreeMap<String, String> {
    let findings = report["Findings"].as_array().unwrap().iter().filter(|finding| finding["Works"] != true);
    let named = |finding: &Value| {
        let text = |name: &str| finding[name].as_str().unwrap().to_owned();
        (format!("{}: {}", text("Area"), text("What")), text("Note"))
    };
    findings.map(named).collect()
}

/// The key specs of which no key works, with their usages.
fn lacking(report: &Value) -> Vec<String> {
    let kinds = report["KeySpecs"].as_array().unwrap().iter().filter(|kind| kind["Works"] != true);
    kinds
        .map(|kind| format!("{} {}", kind["KeySpec"].as_str().unwrap(), kind["KeyUsage"].as_str().unwrap()))
        .collect()
}

fn names(failing: &BTreeMap<String, String>) -> Vec<&str> {
    failing.keys().map(String::as_str).collect()
}

/// SoftHSM2 2.6.1 pads before it wraps, and writes the padded length.
const SOFTHSM2_LACKS: &str = "wrapping key: keeps a length that is no multiple of 8 bytes";

#[test]
fn softhsm2_is_what_the_daemon_needs() {
    let token = Token::new(1);
    let (fits, report) = with_so_pin(&token, &token.module());
    assert!(fits);
    assert_eq!(names(&failing(&report)), [SOFTHSM2_LACKS]);
    assert_eq!(lacking(&report), ["ML_DSA_44 SIGN_VERIFY", "ML_DSA_65 SIGN_VERIFY", "ML_DSA_87 SIGN_VERIFY"]);
    let kinds = report["KeySpecs"].as_array().unwrap();
    let unwrapped: Vec<_> = kinds.iter().filter(|kind| kind["Wrapped"] == false).collect();
    assert_eq!(unwrapped.len(), 1, "{unwrapped:?}");
    assert_eq!(unwrapped[0]["KeySpec"], "ECC_NIST_EDWARDS25519");
    // Nothing stays.
    let left = token.pkcs11_tool(&["--list-objects"]);
    assert!(left.status.success());
    assert_eq!(String::from_utf8(left.stdout).unwrap(), "");

    let told = check(&token, &token.module(), &[]);
    assert_eq!(told.status.code(), Some(0));
    let text = String::from_utf8(told.stdout).unwrap();
    for expected in ["not tried", "The daemon can use it.", "GenerateMac, VerifyMac", "on one HSM alone"] {
        assert!(text.contains(expected), "{expected} in {text}");
    }
}

#[test]
fn an_hsm_that_writes_its_own_iv_fits() {
    let token = Token::new(2);
    token.set_rules("gcm_iv");
    let (fits, report) = with_so_pin(&token, &token.shimmed());
    assert!(fits);
    assert_eq!(names(&failing(&report)), [SOFTHSM2_LACKS]);
    let findings = report["Findings"].as_array().unwrap();
    let iv = findings.iter().find(|finding| finding["What"] == "says which IV it used").unwrap();
    assert_eq!(iv["Note"], "its own");
}

#[test]
fn each_defect_is_seen_and_nothing_else() {
    let token = Token::new(3);
    // It forgets what unwrapped keys must be, has few sessions, short buffers, and
    // signs wrongly.
    token.set_rules("C_GenerateKey drop=0x40000212\nsessions_max=5\ngcm_bytes_max=1000\nC_Sign corrupt");
    let (fits, report) = with_so_pin(&token, &token.shimmed());
    assert!(!fits);
    let found = failing(&report);
    assert_eq!(
        names(&found),
        [
            "AES-GCM: takes 4096 bytes",
            "sessions: are 6 at once",
            "sizes: RSA-3072 is made, wrapped and signs",
            "sizes: RSA-4096 is made, wrapped and signs",
            SOFTHSM2_LACKS,
            "wrapping key: unwraps to nothing that can be read",
        ]
    );
    assert!(
        found["sessions: are 6 at once"].contains("after 5: C_OpenSession: CKR_SESSION_COUNT"),
        "{found:?}"
    );
    assert!(found["AES-GCM: takes 4096 bytes"].contains("CKR_DATA_LEN_RANGE"), "{found:?}");
    let works = report["KeySpecs"].as_array().unwrap().iter().filter(|kind| kind["Works"] == true);
    let works: Vec<_> = works.map(|kind| kind["KeyUsage"].as_str().unwrap()).collect();
    let secret = ["ENCRYPT_DECRYPT"; 4];
    let expected = [&secret[..3], &["KEY_AGREEMENT"; 3], &secret[3..]].concat();
    assert_eq!(works, expected);
}

#[test]
fn a_wrapping_key_that_can_be_read_or_taken_is_seen() {
    let token = Token::new(4);
    token.set_rules("C_GenerateKey drop=0x103\nC_GenerateKey drop=0x210");
    let (fits, report) = with_so_pin(&token, &token.shimmed());
    assert!(!fits);
    let found = failing(&report);
    assert_eq!(
        names(&found),
        ["wrapping key: cannot be read", SOFTHSM2_LACKS, "wrapping key: leaves under TRUSTED keys only"]
    );

    // One that goes away, and one that hangs.
    token.set_rules("C_Decrypt rv=0x32");
    let (fits, report) = with_so_pin(&token, &token.shimmed());
    assert!(!fits);
    let found = failing(&report);
    assert!(
        found["faults: a wrong AES-GCM tag is not taken for a broken HSM"].contains("CKR_DEVICE_REMOVED")
    );
    assert!(lacking(&report).contains(&"SYMMETRIC_DEFAULT ENCRYPT_DECRYPT".to_owned()));
    token.set_rules("C_Decrypt hang");
    let told = check(&token, &token.shimmed(), &["--step-timeout", "5"]);
    assert_eq!(told.status.code(), Some(1));
    let text = String::from_utf8(told.stdout).unwrap();
    assert!(
        text.contains("nothing came back for 5 s") && text.contains("The daemon cannot use it."),
        "{text}"
    );
    // What a check that did not end left behind, the next one takes away.
    token.set_rules("");
    let (fits, _) = with_so_pin(&token, &token.shimmed());
    assert!(fits);
    assert_eq!(String::from_utf8(token.pkcs11_tool(&["--list-objects"]).stdout).unwrap(), "");
}
