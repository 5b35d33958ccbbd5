//! Requests that AWS has as REST: some members are in the query.

use bytes::Bytes;
use serde_json::{Map, Value};

/// The body with the members of the query in it. One that is no object stays as
/// it is: the operation refuses it.
pub fn body(query: &str, body: Bytes) -> Bytes {
    let parsed = match body.is_empty() {
        true => Ok(Map::new()),
        false => serde_json::from_slice::<Map<String, Value>>(&body),
    };
    let Ok(mut members) = parsed else { return body };
    for (name, value) in form_urlencoded::parse(query.as_bytes()) {
        members.insert(name.into_owned(), Value::String(value.into_owned()));
    }
    Value::Object(members).to_string().into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn members_of_the_query_are_members() {
        let merged = body("channelArn=arn%3Ab&externalId=c", Bytes::from_static(b"{\"a\":[1]}"));
        assert_eq!(&merged[..], br#"{"a":[1],"channelArn":"arn:b","externalId":"c"}"#);
        assert_eq!(body("a=b", Bytes::from_static(b"[]")), "[]");
    }
}
