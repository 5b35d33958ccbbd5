#![allow(missing_docs, reason = "stub")]
use crate::store::*;
use std::{path::Path, sync::Arc};
pub struct History;
pub enum Attribute {
    EventId,
    EventName,
    ReadOnly,
    Username,
    ResourceType,
    ResourceName,
    EventSource,
    AccessKeyId,
}
pub struct Lookup {
    pub account: String,
    pub attribute: Option<(Attribute, String)>,
    pub start_ms: i64,
    pub end_ms: i64,
    pub before: Option<u32>,
    pub limit: u32,
}
pub struct Page {
    pub events: Vec<StoredEvent>,
    pub next: Option<u32>,
}
impl History {
    pub async fn open(_: &Path, _: Arc<dyn Store>) -> Result<Self, StoreError> {
        Ok(History)
    }
    pub async fn close(&self) {}
    pub async fn lookup(&self, _: Lookup) -> Result<Page, StoreError> {
        Ok(Page { events: vec![], next: None })
    }
}
