//! For whom a service calls. It says so in headers of its request, gRPC
//! metadata or signed HTTP headers; who is no service may have none of them.
//!
//! ```text
//! strongroom-on-behalf-of     the principal: its policies decide, it is on the record, kms:ViaService is told
//! strongroom-source-arn       aws:SourceArn, and what grants with that constraint ask for
//! strongroom-source-account   aws:SourceAccount
//! ```

use std::sync::Arc;

use http::HeaderMap;

use crate::caller::{Caller, Principal, PrincipalKind, ServiceCall};
use crate::config::Directory;
use crate::error::{Error, Exception, Result};
use crate::key::arn::{Arn, is_account_id};

const ON_BEHALF_OF: &str = "strongroom-on-behalf-of";
const SOURCE_ARN: &str = "strongroom-source-arn";
const SOURCE_ACCOUNT: &str = "strongroom-source-account";
/// All of them; AWS's protocol wants them signed.
pub const HEADERS: [&str; 3] = [ON_BEHALF_OF, SOURCE_ARN, SOURCE_ACCOUNT];
/// Longest that one may be.
const VALUE_BYTES_MAX: usize = 2048;

/// The caller of a request, as whom its headers say that it calls; with why it
/// is refused, where it is.
pub fn acting(caller: Caller, headers: &HeaderMap, directory: &Directory) -> (Caller, Result<()>) {
    if caller.principal.kind != PrincipalKind::Service {
        let refused = HEADERS.iter().find(|name| headers.contains_key(**name));
        let refused = refused.map(|name| denied(&caller, &format!("{name} is for services alone")));
        return (caller, refused.map_or(Ok(()), Err));
    }
    match service_call(&caller, headers, directory) {
        Ok((call, principal)) => {
            // What the service proved is not the principal's.
            let own = principal.kind == PrincipalKind::Service;
            let access_key_id = caller.access_key_id.filter(|_| own);
            (Caller { principal, service: Some(Arc::new(call)), access_key_id, ..caller }, Ok(()))
        }
        Err(refused) => (caller, Err(refused)),
    }
}

fn service_call(
    caller: &Caller,
    headers: &HeaderMap,
    directory: &Directory,
) -> Result<(ServiceCall, Arc<Principal>)> {
    let call = ServiceCall {
        service: caller.principal.name.clone(),
        source_arn: one(headers, SOURCE_ARN, |text| Arn::parse(text).is_some())?,
        source_account: one(headers, SOURCE_ACCOUNT, is_account_id)?,
    };
    let Some(arn) = one(headers, ON_BEHALF_OF, |text| Arn::parse(text).is_some())? else {
        return Ok((call, caller.principal.clone()));
    };
    let principal = directory.principal(&arn).filter(|named| named.kind != PrincipalKind::Service);
    match principal {
        Some(principal) => Ok((call, principal.clone())),
        None => Err(denied(caller, &format!("{ON_BEHALF_OF} names no principal of this installation"))),
    }
}

/// The value of a header that is there at most once.
fn one(headers: &HeaderMap, name: &str, is_good: impl Fn(&str) -> bool) -> Result<Option<String>> {
    let mut values = headers.get_all(name).iter();
    let (first, second) = (values.next(), values.next());
    let Some(value) = first else { return Ok(None) };
    let text = value.to_str().ok().filter(|text| text.len() <= VALUE_BYTES_MAX && is_good(text));
    match (text, second) {
        (Some(text), None) => Ok(Some(text.to_owned())),
        _ => Err(Error::validation(format!("The header {name} makes no sense."))),
    }
}

fn denied(caller: &Caller, why: &str) -> Error {
    Error::new(Exception::AccessDenied, format!("User: {} is not authorized: {why}", caller.arn()))
}
