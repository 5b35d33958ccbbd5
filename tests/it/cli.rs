//! The clients' commands against the API's own list of operations.

use clap::Command;
use prost_reflect::{DescriptorPool, ServiceDescriptor};

use strongroom::cli;

fn service(name: &str) -> ServiceDescriptor {
    DescriptorPool::decode(strongroom::proto::DESCRIPTORS).unwrap().get_service_by_name(name).unwrap()
}

/// Every operation has a command with help of its own, and a flag for each
/// member of its request.
fn walk(command: &Command, service: &ServiceDescriptor) {
    let mut names: Vec<_> = command.get_subcommands().map(|c| c.get_name().replace('-', "")).collect();
    let mut methods: Vec<_> = service.methods().map(|method| method.name().to_lowercase()).collect();
    names.sort();
    methods.sort();
    assert_eq!(names, methods);
    for method in service.methods() {
        let name = method.name().to_lowercase();
        let operation = command.get_subcommands().find(|c| c.get_name().replace('-', "") == name).unwrap();
        assert!(operation.get_about().is_some_and(|about| !about.to_string().is_empty()), "{name}");
        for field in method.input().fields() {
            let long = field.name().replace('_', "-");
            let flag = operation.get_arguments().find(|arg| arg.get_long() == Some(&long));
            assert!(flag.is_some(), "{name} has no --{long}");
        }
    }
}

#[test]
fn every_operation_has_its_command() {
    walk(&cli::kms_command(), &service("strongroom.kms.v1.KeyManagementService"));
    walk(&cli::admin_command(), &service("strongroom.admin.v1.AdminService"));
}

/// clap's own check: among others, no member's flag is also the connection's or
/// the output's.
#[test]
fn the_commands_are_sound() {
    for command in [
        cli::kms_command(),
        cli::events_command(),
        cli::trail_command(),
        cli::admin_command(),
        cli::hsm_list_command(),
    ] {
        Command::new("strongroom").subcommand(command).debug_assert();
    }
}

#[test]
fn help_comes_from_the_protos() {
    let help = |mut command: Command, path: &[&str]| {
        command.build();
        let found =
            path.iter().fold(&mut command, |command, name| command.find_subcommand_mut(name).unwrap());
        found.render_long_help().to_string()
    };
    let encrypt = help(cli::kms_command(), &["encrypt"]);
    for text in
        ["Encrypts up to 4096 bytes", "--plaintext", "[required] [1 to 4096 bytes]", "RSAES_OAEP_SHA_1"]
    {
        assert!(encrypt.contains(text), "{text} in {encrypt}");
    }
    let tail = help(cli::events_command(), &["tail"]);
    for text in ["--error-codes", "Key ids or key ARNs", "--no-read-only", "--position-file"] {
        assert!(tail.contains(text), "{text} in {tail}");
    }
    assert!(!tail.contains("--position <"), "the position is the command's own work");
    let lookup = help(cli::events_command(), &["lookup"]);
    assert!(lookup.contains("EventId, EventName") && !lookup.contains("--next-token"), "{lookup}");
}
