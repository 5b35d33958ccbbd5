//! A service's operations as commands: `strongroom kms create-key …`.

use std::process::ExitCode;

use clap::{ArgMatches, Command};
use prost_reflect::MethodDescriptor;

use super::output::{self, Output};
use super::schema::{self, Service};
use super::values::Sources;
use super::{Failure, arguments, call, connection};

const VALUES_HELP: &str = "\
Values: text is taken as it is, or from a file (file://PATH). Bytes are base64, a file's \
content as it is (fileb://PATH or file://PATH) or standard input (-). Structures and maps are \
JSON or the AWS CLI's shorthand (TagKey=a,TagValue=b). Times are RFC 3339, a date, seconds \
since 1970, or relative: -1h.

Exit codes: 0 done, 2 wrong usage, 253 connection settings missing or wrong, 254 the service's \
exception, 255 no connection, no answer in time or a file that cannot be written.";

/// A command with one below it for each operation of the service.
pub fn command(name: &'static str, about: &'static str, service: Service) -> Command {
    let operations = service.operations().map(|(name, method)| operation(name, &method));
    Command::new(name)
        .about(about)
        .long_about(format!("{about}.\n\n{}", service.comment()))
        .after_long_help(VALUES_HELP)
        .subcommand_required(true)
        .arg_required_else_help(true)
        .args(connection::args())
        .subcommands(operations)
}

/// Calls the operation that was matched and prints its answer.
///
/// # Errors
/// Any [`Failure`].
pub async fn run(service: Service, matches: &ArgMatches) -> Result<ExitCode, Failure> {
    let (name, matches) =
        matches.subcommand().ok_or_else(|| Failure::Usage("no operation is named".to_owned()))?;
    let (_, method) = service
        .operations()
        .find(|(operation, _)| operation == name)
        .ok_or_else(|| Failure::Usage(format!("there is no operation {name}")))?;
    call_method(&method, matches).await
}

/// Calls one operation and prints its answer.
///
/// # Errors
/// Any [`Failure`].
pub async fn call_method(method: &MethodDescriptor, matches: &ArgMatches) -> Result<ExitCode, Failure> {
    let output = Output::prepare(matches, &method.output())?;
    let request = arguments::request(&method.input(), matches, &mut Sources::of_process())?;
    let connection = connection::connect(matches).await?;
    output.print(&call::unary(&connection, method, request).await?)?;
    Ok(ExitCode::SUCCESS)
}

/// The command of one operation, without the connection's flags.
pub fn operation(name: String, method: &MethodDescriptor) -> Command {
    Command::new(name)
        .about(schema::method_comment(method))
        .after_long_help(VALUES_HELP)
        .args(arguments::of_request(&method.input(), &[]))
        .args(output::args())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::testing::Server;
    use crate::cli::values::tests::sources;
    use crate::cli::{admin_command, json, kms_command};
    use prost_reflect::DynamicMessage;
    use serde_json::{Value as Json, json};
    use tonic::Status;
    use tonic_types::{ErrorDetails, StatusExt};

    /// The request that a command line of `kms` makes, or the failure's text.
    fn request(line: &str) -> Result<Json, String> {
        let words = std::iter::once("kms").chain(line.split_whitespace());
        let matches = kms_command().try_get_matches_from(words).map_err(|error| error.to_string())?;
        let (name, matches) = matches.subcommand().unwrap();
        let (_, method) = Service::Kms.operations().find(|(operation, _)| operation == name).unwrap();
        let message: DynamicMessage = arguments::request(&method.input(), matches, &mut sources("stdin"))
            .map_err(|failure| failure.to_string())?;
        Ok(json::to_json(&message))
    }

    #[test]
    fn flags_of_every_kind_make_the_request() {
        assert_eq!(
            request(
                "encrypt --key-id alias/a --plaintext - --encryption-context a=b,c=d --encryption-context e=f \
                 --grant-tokens t1 t2 --grant-tokens t3 --encryption-algorithm symmetric_default --no-dry-run"
            ),
            Ok(json!({
                "KeyId": "alias/a", "Plaintext": "c3RkaW4=",
                "EncryptionContext": {"a": "b", "c": "d", "e": "f"}, "GrantTokens": ["t1", "t2", "t3"],
                "EncryptionAlgorithm": "SYMMETRIC_DEFAULT", "DryRun": false,
            }))
        );
        let tags = json!({"Tags": [{"TagKey": "a", "TagValue": "b"}, {"TagKey": "c", "TagValue": ""}]});
        assert_eq!(
            request("create-key --tags TagKey=a,TagValue=b --tags TagKey=c,TagValue="),
            Ok(tags.clone())
        );
        assert_eq!(request("create-key --tags TagKey=a,TagValue=b TagKey=c,TagValue="), Ok(tags.clone()));
        let list = r#"create-key --tags [{"TagKey":"a","TagValue":"b"},{"TagKey":"c","TagValue":""}]"#;
        assert_eq!(request(list), Ok(tags));
        assert_eq!(request("generate-random --number-of-bytes 32"), Ok(json!({"NumberOfBytes": 32})));
        assert_eq!(
            request("decrypt --ciphertext-blob AP8K --recipient KeyEncryptionAlgorithm=RSAES_OAEP_SHA_256"),
            Ok(json!({
                "CiphertextBlob": "AP8K", "Recipient": {"KeyEncryptionAlgorithm": "RSAES_OAEP_SHA_256"},
            }))
        );
        assert_eq!(
            request(r#"decrypt --encryption-context {"a":"b,c"} --dry-run-modifiers ignore_ciphertext"#),
            Ok(json!({"EncryptionContext": {"a": "b,c"}, "DryRunModifiers": ["IGNORE_CIPHERTEXT"]}))
        );
        // Absent is told from false, empty and zero.
        assert_eq!(request("create-key --description="), Ok(json!({"Description": "", "Tags": []})));
        assert_eq!(request("list-keys --limit -1"), Ok(json!({"Limit": -1})));
    }

    #[test]
    fn a_wrong_flag_is_named_with_what_is_right() {
        let error = |line| request(line).unwrap_err();
        assert!(error("encrypt --key-id k").contains("--plaintext"));
        assert!(error("create-key --key-spec RSA_1024").contains("RSA_2048, RSA_3072"));
        assert!(error("generate-random --number-of-bytes x").starts_with("error: --number-of-bytes: "));
        assert!(error("create-key --tags TagKey=a,Colour=b").contains("TagKey, TagValue"));
        let context = error("decrypt --encryption-context a=b,a=c");
        assert!(context.contains("'a' is given twice"), "{context}");
        assert!(error("decrypt --encryption-context a=b --encryption-context a=c").contains("given twice"));
        let secret = error("encrypt --key-id k --plaintext s3cret!");
        assert!(secret.contains("--plaintext") && !secret.contains("s3cret"), "{secret}");
    }

    #[test]
    fn json_is_taken_and_flags_come_before_it() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("request.json");
        std::fs::write(&file, r#"{"KeyId": "k", "Plaintext": "AP8K", "DryRun": true}"#).unwrap();
        let line = format!("encrypt --cli-input-json {} --key-id other", file.display());
        let expected = json!({"KeyId": "other", "Plaintext": "AP8K", "DryRun": true});
        assert_eq!(request(&line), Ok(expected.clone()));
        assert_eq!(request(&line.replace("json /", "json file:///")), Ok(expected));
        assert!(request("encrypt --cli-input-json /no/such").unwrap_err().contains("/no/such"));
    }

    fn answers(operation: &str, request: &Json) -> Vec<Result<Json, Status>> {
        if request["KeyId"] == "disabled" {
            let details = ErrorDetails::with_error_info("DisabledException", "kms.amazonaws.com", []);
            let code = tonic::Code::FailedPrecondition;
            return vec![Err(Status::with_error_details(code, "it is disabled.", details))];
        }
        match operation {
            "Decrypt" => vec![Ok(json!({"KeyId": "k", "Plaintext": request["CiphertextBlob"]}))],
            "ConfirmClock" => vec![Ok(json!({"Waiting": 3}))],
            _ => vec![Ok(json!({}))],
        }
    }

    #[tokio::test]
    async fn an_answer_comes_as_json_as_one_member_and_raw() {
        let server = Server::start(answers);
        let out = server.path("out");
        let decrypt = ["decrypt", "--ciphertext-blob", "AP8K", "--out", &out];
        for (more, expected) in [
            (&[][..], &b"{\n  \"KeyId\": \"k\",\n  \"Plaintext\": \"AP8K\"\n}\n"[..]),
            (&["--field", "plaintext", "-o", "raw"], &[0, 255, 10]),
            (&["--field", "Plaintext"], b"AP8K\n"),
            (&["--field", "key-id", "-o", "raw"], b"k"),
        ] {
            let matches = server.matches(kms_command(), &[&decrypt[..], more].concat());
            run(Service::Kms, &matches).await.unwrap();
            assert_eq!(std::fs::read(&out).unwrap(), expected);
        }
        assert_eq!(server.calls()[0], ("Decrypt".to_owned(), json!({"CiphertextBlob": "AP8K"})));

        let matches =
            server.matches(admin_command(), &["confirm-clock", "--field", "Waiting", "--out", &out]);
        run(Service::Admin, &matches).await.unwrap();
        assert_eq!(std::fs::read(&out).unwrap(), b"3\n");
    }

    #[tokio::test]
    async fn an_exception_is_told_and_nothing_written() {
        let server = Server::start(answers);
        let out = server.path("out");
        let matches = server.matches(kms_command(), &["enable-key", "--key-id", "disabled", "--out", &out]);
        let failure = run(Service::Kms, &matches).await.unwrap_err();
        assert_eq!(
            failure.to_string(),
            "An error occurred (DisabledException) when calling the EnableKey operation: it is disabled."
        );
        assert!(!std::path::Path::new(&out).exists());
    }

    #[tokio::test]
    async fn wrong_output_is_refused_before_the_call() {
        let server = Server::start(answers);
        for line in [
            &["create-key", "--field", "Colour"][..],
            &["create-key", "-o", "raw"],
            &["create-key", "--out", "/no/such/folder/file"],
        ] {
            assert!(run(Service::Kms, &server.matches(kms_command(), line)).await.is_err());
        }
        assert_eq!(server.calls(), []);
    }
}
