//! Compiles proto/ to a descriptor set.

use std::{env, error::Error, fs, path::PathBuf};

const PROTOS: [&str; 4] = [
    "strongroom/kms/v1/kms.proto",
    "strongroom/cloudtrail/v1/cloudtrail.proto",
    "strongroom/hsm/v1/hsm.proto",
    "strongroom/admin/v1/admin.proto",
];

fn main() -> Result<(), Box<dyn Error>> {
    println!("cargo:rerun-if-changed=proto");
    let mut compiler = protox::Compiler::new(["proto"])?;
    compiler.include_source_info(true).include_imports(true).open_files(PROTOS)?;
    let out = PathBuf::from(env::var("OUT_DIR")?).join("descriptors.bin");
    fs::write(out, compiler.encode_file_descriptor_set())?;
    Ok(())
}
