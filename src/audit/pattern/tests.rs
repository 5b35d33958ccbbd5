//! The rules that EventBridge publishes, and what is no pattern.

use serde_json::json;

use super::*;

/// The event of EventBridge's own examples.
fn event() -> Value {
    json!({
        "version": "0", "id": "ddddd4-aaaa-7777-4444-345dd43cc333",
        "detail-type": "EC2 Instance State-change Notification", "source": "aws.ec2",
        "account": "012345679012", "time": "2017-10-02T16:24:49Z", "region": "us-east-1",
        "resources": ["arn:aws:ec2:us-east-1:123456789012:instance/i-000000aaaaaa00000"],
        "detail": {
            "c-count": 5, "d-count": 3, "x-limit": 301.8, "source-ip": "10.0.0.33", "v6": "2001:db8::17",
            "instance-id": "i-000000aaaaaa00000", "state": "running", "nothing": null, "yes": true, "empty": "",
            "list": [], "object": {"a": 1}, "path": "dir/sub/image.PNG", "star": "a*b\\c",
            "people": [{"first": "Anna", "last": "Smith"}, {"first": "Peter", "last": "Jones", "age": 7}],
            "nested": [[{"x": 1, "y": 2}], [{"x": 3, "y": 4}]], "a.b": {"c.d": "dots"},
        },
    })
}

fn pattern(value: &Value) -> Result<Pattern, PatternError> {
    value.to_string().parse()
}

fn matches(value: Value) -> bool {
    pattern(&value).unwrap_or_else(|error| panic!("{value}: {error}")).matches(&event())
}

/// Whether a field of `detail` matches one value of a pattern.
fn detail(field: &str, value: Value) -> bool {
    matches(json!({ "detail": { field: [value] } }))
}

#[test]
fn published_examples_match_the_published_event() {
    for example in [
        json!({
            "detail-type": ["EC2 Instance State-change Notification"],
            "resources": ["arn:aws:ec2:us-east-1:123456789012:instance/i-000000aaaaaa00000"],
            "detail": {"state": ["initializing", "running"]},
        }),
        json!({"time": [{"prefix": "2017-10-02"}]}),
        json!({"source": [{"suffix": "ec2"}]}),
        json!({"source": [{"equals-ignore-case": "AWS.EC2"}]}),
        json!({"source": [{"wildcard": "a*e*2"}]}),
        json!({"detail": {"state": [{"anything-but": "initializing"}]}}),
        json!({"detail": {"x-limit": [{"anything-but": 123}]}}),
        json!({"detail": {"state": [{"anything-but": ["stopped", "overloaded"]}]}}),
        json!({"detail": {"x-limit": [{"anything-but": [100, 200, 300]}]}}),
        json!({"detail": {"state": [{"anything-but": {"prefix": "init"}}]}}),
        json!({"detail": {
            "c-count": [{"numeric": [">", 0, "<=", 5]}],
            "d-count": [{"numeric": ["<", 10]}],
            "x-limit": [{"numeric": ["=", 3.018e2]}],
        }}),
        json!({"detail": {"source-ip": [{"cidr": "10.0.0.0/24"}]}}),
        json!({"detail": {"c-count": [{"exists": true}]}}),
        json!({"detail": {"z-count": [{"exists": false}]}}),
        json!({
            "time": [{"prefix": "2017-10-02"}],
            "detail": {
                "state": [{"anything-but": "initializing"}],
                "c-count": [{"numeric": [">", 0, "<=", 5]}],
                "d-count": [{"numeric": ["<", 10]}],
                "x-limit": [{"anything-but": [100, 200, 300]}],
                "source-ip": [{"cidr": "10.0.0.0/8"}],
            },
        }),
        json!({"$or": [{"source": ["aws.s3"]}, {"detail": {"d-count": [3]}}]}),
        json!({"source": ["aws.ec2"], "$or": [
            {"region": ["eu-west-1"]},
            {"account": ["012345679012"], "$or": [{"detail": {"state": ["no"]}}, {"detail": {"c-count": [5]}}]},
        ]}),
    ] {
        assert!(matches(example.clone()), "{example}");
    }
}

#[test]
fn each_operator_can_refuse() {
    for (field, yes, no) in [
        ("state", json!("running"), json!("Running")),
        ("state", json!({"prefix": "run"}), json!({"prefix": "Run"})),
        (
            "state",
            json!({"prefix": {"equals-ignore-case": "RUN"}}),
            json!({"prefix": {"equals-ignore-case": "RAN"}}),
        ),
        ("state", json!({"suffix": "ing"}), json!({"suffix": "run"})),
        ("path", json!({"suffix": {"equals-ignore-case": ".png"}}), json!({"suffix": ".png"})),
        ("state", json!({"equals-ignore-case": "RUNNING"}), json!({"equals-ignore-case": "RUN"})),
        ("path", json!({"wildcard": "dir/*/*.PNG"}), json!({"wildcard": "dir/*.png"})),
        ("path", json!({"wildcard": "*"}), json!({"wildcard": "dir/*/"})),
        ("star", json!({"wildcard": "a\\*b\\\\*"}), json!({"wildcard": "a\\*c"})),
        ("state", json!({"anything-but": {"suffix": "x"}}), json!({"anything-but": {"suffix": "ing"}})),
        (
            "state",
            json!({"anything-but": {"prefix": ["a", "b"]}}),
            json!({"anything-but": {"prefix": ["a", "run"]}}),
        ),
        (
            "state",
            json!({"anything-but": {"equals-ignore-case": ["STOPPED"]}}),
            json!({"anything-but": {"equals-ignore-case": ["STOPPED", "RUNNING"]}}),
        ),
        (
            "path",
            json!({"anything-but": {"wildcard": "*/lib/*"}}),
            json!({"anything-but": {"wildcard": "*/sub/*"}}),
        ),
        ("c-count", json!({"anything-but": [4, 6]}), json!({"anything-but": [4, 5.0]})),
        ("c-count", json!({"anything-but": "5"}), json!({"anything-but": 5})),
        ("c-count", json!(5.0), json!("5")),
        ("c-count", json!({"numeric": ["=", 5]}), json!({"numeric": ["=", 5.5]})),
        ("c-count", json!({"numeric": [">=", 5, "<", 6]}), json!({"numeric": [">", 5, "<", 6]})),
        ("c-count", json!({"numeric": ["<=", 5]}), json!({"numeric": ["<", 5]})),
        ("source-ip", json!({"cidr": "10.0.0.32/29"}), json!({"cidr": "10.0.0.0/27"})),
        ("source-ip", json!({"cidr": "0.0.0.0/0"}), json!({"cidr": "::/0"})),
        ("v6", json!({"cidr": "2001:db8::/64"}), json!({"cidr": "2001:db9::/64"})),
        ("nothing", json!(null), json!("null")),
        ("nothing", json!({"exists": true}), json!({"exists": false})),
        ("yes", json!(true), json!(false)),
        ("empty", json!(""), json!(null)),
        ("missing", json!({"exists": false}), json!({"exists": true})),
        // Neither an object nor an empty list is a leaf.
        ("object", json!({"exists": false}), json!({"exists": true})),
        ("list", json!({"exists": false}), json!({"exists": true})),
        ("missing", json!({"exists": false}), json!({"anything-but": "x"})),
        ("missing.below", json!({"exists": false}), json!("x")),
    ] {
        assert!(detail(field, yes.clone()), "{field}: {yes}");
        assert!(!detail(field, no.clone()), "{field}: {no}");
    }
}

#[test]
fn fields_of_a_list_match_in_one_element() {
    let people = |fields: Value| matches(json!({ "detail": { "people": fields } }));
    assert!(people(json!({"first": ["Anna"], "last": ["Smith"]})));
    assert!(!people(json!({"first": ["Anna"], "last": ["Jones"]})));
    assert!(people(json!({"last": ["Jones"], "age": [{"numeric": [">", 6]}]})));
    assert!(!people(json!({"first": ["Anna"], "age": [{"exists": false}]})), "there is an age in the event");
    assert!(!matches(json!({"detail": {"people": {"first": ["Anna"]}, "$or": [
        {"people": {"last": ["Jones"]}}, {"people": {"age": [7]}},
    ]}})));
    let nested = |fields: Value| matches(json!({ "detail": { "nested": fields } }));
    assert!(nested(json!({"x": [3], "y": [4]})));
    assert!(!nested(json!({"x": [1], "y": [4]})));
}

#[test]
fn a_dot_is_a_step() {
    assert!(matches(json!({"detail.state": ["running"]})));
    assert!(matches(json!({"detail": {"object.a": [1]}})));
    assert!(matches(json!({"detail": {"a": {"b.c": {"d": ["dots"]}}}})));
    assert!(!matches(json!({"detail": {"a": {"b": {"d": ["dots"]}}}})));
}

#[test]
fn or_is_a_field_where_it_was_one_before() {
    let event = json!({"$or": {"metricType": "a"}});
    assert!(pattern(&json!({"$or": {"metricType": ["a"]}})).unwrap().matches(&event));
    assert!(
        pattern(&json!({"$or": [{"prefix": "a"}, {"prefix": "b"}]})).unwrap().matches(&json!({"$or": "bc"}))
    );
}

#[test]
fn what_is_no_pattern_says_why() {
    let many: Vec<Value> = (0..40).map(|n| json!({ "f": [n] })).collect();
    for (text, problem) in [
        ("{".to_owned(), "is no JSON"),
        ("[]".to_owned(), "must be an object"),
        ("{}".to_owned(), "must not be empty"),
        (json!({"a": "b"}).to_string(), "a must be an object or an array"),
        (json!({"a": []}).to_string(), "a must not be an empty array"),
        (json!({"a": {"b": {}}}).to_string(), "a.b must not be empty"),
        (json!({"a": [["b"]]}).to_string(), "array in an array"),
        (json!({"a": [{"like": "b"}]}).to_string(), "operator like, which does not exist"),
        (json!({"a": [{"prefix": 1}]}).to_string(), "prefix that is not a text"),
        (json!({"a": [{"prefix": "a", "suffix": "b"}]}).to_string(), "not exactly one operator"),
        (json!({"a": [{"exists": "yes"}]}).to_string(), "neither true nor false"),
        (json!({"a": [{"wildcard": "a**"}]}).to_string(), "consecutive wildcard"),
        (json!({"a": [{"wildcard": "a\\b"}]}).to_string(), "backslash"),
        (json!({"a": [{"numeric": []}]}).to_string(), "one or two operators"),
        (json!({"a": [{"numeric": ["!=", 1]}]}).to_string(), "numeric operator !="),
        (json!({"a": [{"numeric": ["<", 1, ">", 0]}]}).to_string(), "then < or <="),
        (json!({"a": [{"numeric": [">", 1, "<", 0]}]}).to_string(), "bottom"),
        (json!({"a": [{"numeric": ["=", 6e9]}]}).to_string(), "beyond"),
        (json!({"a": [{"cidr": "10.0.0.0"}]}).to_string(), "ADDRESS/BITS"),
        (json!({"a": [{"cidr": "10.0.0.0/33"}]}).to_string(), "ADDRESS/BITS"),
        (json!({"a": [{"anything-but": ["a", 1]}]}).to_string(), "anything-but"),
        (json!({"a": [{"anything-but": {"numeric": ["=", 1]}}]}).to_string(), "anything-but with numeric"),
        (json!({"a": [{"anything-but": {"prefix": ""}}]}).to_string(), "empty prefix"),
        (json!({"a": ["x"], "$or": [{"a": ["y"]}, {"b": ["z"]}]}).to_string(), "a is asked for twice"),
        (json!({"a": {"$or": many.clone()}, "b": {"$or": many}}).to_string(), "more than 1000 alternatives"),
    ] {
        let error = text.parse::<Pattern>().unwrap_err().to_string();
        assert!(error.contains(problem), "{text}: {error}");
    }
}
