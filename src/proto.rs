//! The API's descriptors.

/// proto/ as an encoded `google.protobuf.FileDescriptorSet`, with comments and
/// the options of `strongroom.options.v1`.
pub const DESCRIPTORS: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/descriptors.bin"));
