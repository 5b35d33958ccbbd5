//! Clusters of several members, each a SoftHSM2 of its own behind the shim that
//! fails as it is told.

mod faults;
pub mod fixture;
mod load;
mod membership;
mod replicas;
