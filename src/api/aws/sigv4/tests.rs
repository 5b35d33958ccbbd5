//! Signatures of AWS's published test suite (`aws-sig-v4-test-suite`), of another
//! signer's presigned URL, and what was changed in them.

use std::sync::Arc;

use secrecy::SecretString;

use super::*;

const SECRET: &str = "wJalrXUtnFEMI/K7MDENG+bPxRfiCYEXAMPLEKEY";
const ID: &str = "AKIDEXAMPLE";
/// 2015-08-30T12:36:00Z.
const NOW_S: i64 = 1_440_938_160;
const DATE: &str = "20150830T123600Z";
const FORM: (&str, &str) = ("Content-Type", "application/x-www-form-urlencoded");
const MISMATCH: &str = "The request signature we calculated does not match";

/// Name, method, target, headers besides host and date, body, signed headers,
/// signature.
type Vector = (
    &'static str,
    &'static str,
    &'static str,
    &'static [(&'static str, &'static str)],
    &'static str,
    &'static str,
    &'static str,
);

const SUITE: [Vector; 7] = [
    (
        "get-vanilla",
        "GET",
        "/",
        &[],
        "",
        "host;x-amz-date",
        "5fa00fa31553b73ebf1942676e86291e8372ff2a2260956d9b8aae1d763fbf31",
    ),
    (
        "post-vanilla",
        "POST",
        "/",
        &[],
        "",
        "host;x-amz-date",
        "5da7c1a2acd57cee7505fc6676e4e544621c30862966e37dddb68e92efbe5d6b",
    ),
    (
        "get-vanilla-query-order-key-case",
        "GET",
        "/?Param2=value2&Param1=value1",
        &[],
        "",
        "host;x-amz-date",
        "b97d918cfa904a5beff61c982a1b6f458b799221646efd99d3219ec94cdf2500",
    ),
    (
        "get-vanilla-utf8-query",
        "GET",
        "/?%E1%88%B4=bar",
        &[],
        "",
        "host;x-amz-date",
        "2cdec8eed098649ff3a119c94853b13c643bcf08f8b0a1d91e12c9027818dd04",
    ),
    (
        "get-header-value-trim",
        "GET",
        "/",
        &[("My-Header1", " value1"), ("My-Header2", " \"a   b   c\"")],
        "",
        "host;my-header1;my-header2;x-amz-date",
        "acc3ed3afb60bb290fc8d2dd0098b9911fcaa05412b367055dee359757a9c736",
    ),
    (
        "post-header-key-sort",
        "POST",
        "/",
        &[("My-Header1", "value1")],
        "",
        "host;my-header1;x-amz-date",
        "c5410059b04c1ee005303aed430f6e6645f61f4dc9e1461ec8f8916fdf18852c",
    ),
    (
        "post-x-www-form-urlencoded",
        "POST",
        "/",
        &[FORM],
        "Param1=value1",
        "content-type;host;x-amz-date",
        "ff11897932ad3f4e8b18135d722051e5ac45fc38421b1da7b9d196a0fe09473a",
    ),
];

/// A URL that botocore signed at that time, for a body of `{}`.
const PRESIGNED: &str = "/?Extra=1&X-Amz-Algorithm=AWS4-HMAC-SHA256&X-Amz-Credential=AKIDEXAMPLE%2F20150830%2Fus-east-1%2Fservice%2Faws4_request&X-Amz-Date=20150830T123600Z&X-Amz-Expires=60&X-Amz-SignedHeaders=host&X-Amz-Signature=56d696ebf738aae1581a27e8126b4be8b8995d8505a1085f911db60b9bcf3767";

struct Request {
    head: Parts,
    body: String,
}

impl Request {
    fn new(method: &str, target: &str, headers: &[(&str, &str)], body: &str) -> Request {
        let mut made = http::Request::builder().method(method).uri(target);
        for (name, value) in [&[("Host", "example.amazonaws.com")], headers].concat() {
            made = made.header(name, value);
        }
        Request { head: made.body(()).unwrap().into_parts().0, body: body.to_owned() }
    }

    fn of(vector: &Vector) -> Request {
        let (_, method, target, headers, body, signed_headers, signature) = vector;
        let authorization = format!(
            "AWS4-HMAC-SHA256 Credential={ID}/20150830/us-east-1/service/aws4_request, SignedHeaders={signed_headers}, Signature={signature}"
        );
        let own = [("X-Amz-Date", DATE), ("Authorization", authorization.as_str())];
        Request::new(method, target, &[&own, *headers].concat(), body)
    }

    fn presigned(target: &str) -> Request {
        Request::new("POST", target, &[], "{}")
    }

    fn with(mut self, name: &'static str, value: &str) -> Request {
        self.head.headers.insert(name, value.parse().unwrap());
        self
    }

    /// The access key's id, or why it is refused.
    fn verified_at(&self, now_s: i64, secret: &str) -> Result<String, String> {
        let scope = Scope { service: "service", regions: &|region| region == "us-east-1" };
        let principal = Arc::new(Principal::root("111122223333"));
        let claim = Claim::of(&self.head, &scope, now_s).map_err(|refused| refused.message)?;
        let key = AccessKey::new(principal, claim.access_key_id(), &SecretString::from(secret));
        let verified = claim.verify(&self.head, self.body.as_bytes(), key);
        verified.map(|verified| verified.access_key_id).map_err(|refused| refused.message)
    }

    fn verified(&self) -> Result<String, String> {
        self.verified_at(NOW_S, SECRET)
    }

    fn is_refused(&self, why: &str) {
        let refused = self.verified().expect_err(why);
        assert!(refused.contains(why), "{refused}, not {why}");
    }
}

#[test]
fn awss_own_signatures_are_the_requests() {
    for vector in &SUITE {
        assert_eq!(Request::of(vector).verified(), Ok(ID.to_owned()), "{}", vector.0);
    }
    assert_eq!(Request::presigned(PRESIGNED).verified(), Ok(ID.to_owned()));
}

#[test]
fn nothing_that_is_signed_may_change() {
    let [get, .., key_sort, form] = SUITE;
    for (changed, target, headers, body) in [
        (get, "/?a=b", get.3, ""),
        (get, "/x", get.3, ""),
        (get, "/", get.3, "x"),
        (key_sort, "/", &[("My-Header1", "value2")][..], ""),
        (key_sort, "/", &[("My-Header1", "value1"), ("My-Header1", "value1")], ""),
        (form, "/", &[FORM], "Param1=value2"),
        (form, "/", &[("Content-Type", "text/plain")], form.4),
    ] {
        let vector = (changed.0, changed.1, target, headers, body, changed.5, changed.6);
        Request::of(&vector).is_refused(MISMATCH);
    }
    let vector = (get.0, "PUT", get.2, get.3, get.4, get.5, get.6);
    Request::of(&vector).is_refused(MISMATCH);
    Request::of(&get).with("host", "example.com").is_refused(MISMATCH);
    let signature = format!("{}0", get.6.get(..63).unwrap());
    Request::of(&(get.0, get.1, get.2, get.3, get.4, get.5, Box::leak(signature.into_boxed_str())))
        .is_refused(MISMATCH);
    assert!(Request::of(&get).verified_at(NOW_S, "another secret").unwrap_err().contains(MISMATCH));
}

#[test]
fn nothing_in_a_presigned_url_may_change() {
    for (from, to) in [
        ("Extra=1", "Extra=2"),
        ("Extra=1&", ""),
        ("Extra=1", "Extra=1&More=1"),
        ("X-Amz-Expires=60", "X-Amz-Expires=61"),
        ("20150830T123600Z", "20150830T123601Z"),
    ] {
        let changed = PRESIGNED.replace(from, to);
        assert_ne!(changed, PRESIGNED);
        Request::presigned(&changed).is_refused(MISMATCH);
    }
    let mut other = Request::presigned(PRESIGNED);
    other.body.push(' ');
    other.is_refused(MISMATCH);
    Request::presigned(PRESIGNED).with("authorization", "AWS4-HMAC-SHA256 x").is_refused("not in both");
}

#[test]
fn a_signature_is_good_for_five_minutes_as_often_as_it_comes() {
    let header = Request::of(&SUITE[0]);
    let url = Request::presigned(PRESIGNED);
    for (request, earliest_s, latest_s) in [(header, -300, 300), (url, -300, 60)] {
        for at_s in [earliest_s, 0, 0, latest_s] {
            assert!(request.verified_at(NOW_S + at_s, SECRET).is_ok(), "{at_s} s");
        }
        let early = request.verified_at(NOW_S + earliest_s - 1, SECRET).unwrap_err();
        assert!(early.starts_with("Signature not yet current: 20150830T123600Z"), "{early}");
        let late = request.verified_at(NOW_S + latest_s + 1, SECRET).unwrap_err();
        assert!(late.starts_with("Signature expired: 20150830T123600Z"), "{late}");
    }
}

#[test]
fn what_must_be_signed_is_named() {
    let get = Request::of(&SUITE[0]);
    assert!(
        get.with("x-amz-target", "TrentService.ListKeys")
            .verified()
            .unwrap_err()
            .contains("'x-amz-target' must be")
    );
    Request::of(&SUITE[0])
        .with("strongroom-on-behalf-of", "arn:aws:iam::111122223333:root")
        .is_refused("'strongroom-on-behalf-of' must be");
    Request::of(&SUITE[0])
        .with("my-header", "is nobody's")
        .verified()
        .expect("an unsigned header of another's");
}
