//! From bytes to a caller and a request, and back.

pub mod aws;
mod delegation;
pub mod front;
pub mod grpc;
pub mod identity;
pub mod limits;
pub mod listener;
pub mod operators;
pub mod tls;
mod unix_socket;
