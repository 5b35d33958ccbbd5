//! CloudWatch Logs' filter patterns for JSON: `{ $.eventName = "DisableKey" && … }`.
//! Pure: a filter and a record in, yes or no out.
//!
//! ```text
//! or         = and { "||" and }
//! and        = term { "&&" term }
//! term       = "(" or ")" | selector test
//! test       = ("=" | "!=" | "<" | "<=" | ">" | ">=") value
//!            | "IS" ("TRUE" | "FALSE" | "NULL") | "EXISTS" | "NOT EXISTS"
//! selector   = "$" { "." name | "[" number "]" | "['" name "']" }
//! value      = number | text, in which * is any characters | %regular expression%
//! ```

use std::iter::Peekable;
use std::str::Chars;

use regex::Regex;
use serde_json::Value;

use super::pattern::{PatternError, Wildcard};

/// Longest text of a filter, as in CloudWatch.
const FILTER_BYTES_MAX: usize = 1024;
/// Parentheses within each other.
const DEPTH_MAX: usize = 32;

/// A filter pattern.
#[derive(Debug, Clone)]
pub struct LogFilter(Test);

#[derive(Debug, Clone)]
enum Test {
    All(Vec<Test>),
    Any(Vec<Test>),
    Compare(Selector, Comparison, Operand),
    Is(Selector, Value),
    Exists(Selector, bool),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Comparison {
    Equal,
    NotEqual,
    Less,
    LessOrEqual,
    Greater,
    GreaterOrEqual,
}

#[derive(Debug, Clone)]
enum Operand {
    Number(f64, String),
    Text(Wildcard),
    Regex(Regex),
}

/// Where in a record a value is: `$.userIdentity.arn`, `$.resources[0].ARN`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Selector(Vec<Step>);

#[derive(Debug, Clone, PartialEq, Eq)]
enum Step {
    Member(String),
    Element(usize),
}

impl std::str::FromStr for LogFilter {
    type Err = PatternError;

    fn from_str(text: &str) -> Result<LogFilter, PatternError> {
        if text.len() > FILTER_BYTES_MAX {
            return Err(PatternError::new(format!("the filter has more than {FILTER_BYTES_MAX} bytes")));
        }
        let inner = text.trim().strip_prefix('{').and_then(|text| text.strip_suffix('}'));
        let inner =
            inner.ok_or_else(|| PatternError::new("the filter is not in braces: { $.eventName = \"…\" }"))?;
        let mut reader = Reader { chars: inner.chars().peekable(), depth: 0 };
        let test = reader.any()?;
        match reader.rest() {
            rest if rest.is_empty() => Ok(LogFilter(test)),
            rest => Err(PatternError::new(format!("the filter cannot be read from `{rest}` on"))),
        }
    }
}

impl std::str::FromStr for Selector {
    type Err = PatternError;

    fn from_str(text: &str) -> Result<Selector, PatternError> {
        let mut reader = Reader { chars: text.chars().peekable(), depth: 0 };
        let selector = reader.selector()?;
        match reader.rest() {
            rest if rest.is_empty() => Ok(selector),
            _ => Err(PatternError::new(format!("`{text}` is not a selector such as $.userIdentity.arn"))),
        }
    }
}

impl LogFilter {
    /// Whether a record is one of those that it describes.
    pub fn matches(&self, record: &Value) -> bool {
        self.0.holds(record)
    }
}

impl Selector {
    /// The value that it points to.
    pub fn find<'a>(&self, record: &'a Value) -> Option<&'a Value> {
        self.0.iter().try_fold(record, |value, step| match step {
            Step::Member(name) => value.get(name),
            Step::Element(index) => value.get(index),
        })
    }
}

impl Test {
    fn holds(&self, record: &Value) -> bool {
        match self {
            Test::All(tests) => tests.iter().all(|test| test.holds(record)),
            Test::Any(tests) => tests.iter().any(|test| test.holds(record)),
            // What is not there is neither equal nor different.
            Test::Compare(selector, comparison, operand) => {
                selector.find(record).is_some_and(|value| operand.compare(*comparison, value))
            }
            Test::Is(selector, wanted) => selector.find(record) == Some(wanted),
            Test::Exists(selector, wanted) => selector.find(record).is_some() == *wanted,
        }
    }
}

impl Operand {
    fn compare(&self, comparison: Comparison, value: &Value) -> bool {
        use Comparison as Is;
        let text = match value {
            Value::String(text) => text.clone(),
            Value::Number(number) => number.to_string(),
            Value::Bool(flag) => flag.to_string(),
            Value::Null | Value::Array(_) | Value::Object(_) => return false,
        };
        let equal = match self {
            Operand::Number(number, written) => {
                value.as_f64().map_or(text == *written, |value| value == *number)
            }
            Operand::Text(wildcard) => wildcard.matches(&text),
            Operand::Regex(regex) => regex.is_match(&text),
        };
        let order = match (self, value.as_f64()) {
            (Operand::Number(number, _), Some(value)) => value.partial_cmp(number),
            _ => None,
        };
        match comparison {
            Is::Equal => equal,
            Is::NotEqual => !equal,
            Is::Less => order.is_some_and(std::cmp::Ordering::is_lt),
            Is::LessOrEqual => order.is_some_and(std::cmp::Ordering::is_le),
            Is::Greater => order.is_some_and(std::cmp::Ordering::is_gt),
            Is::GreaterOrEqual => order.is_some_and(std::cmp::Ordering::is_ge),
        }
    }
}

struct Reader<'a> {
    chars: Peekable<Chars<'a>>,
    depth: usize,
}

impl Reader<'_> {
    fn any(&mut self) -> Result<Test, PatternError> {
        let mut tests = vec![self.all()?];
        while self.takes("||")? {
            tests.push(self.all()?);
        }
        Ok(one_or(tests, Test::Any))
    }

    fn all(&mut self) -> Result<Test, PatternError> {
        let mut tests = vec![self.term()?];
        while self.takes("&&")? {
            tests.push(self.term()?);
        }
        Ok(one_or(tests, Test::All))
    }

    fn term(&mut self) -> Result<Test, PatternError> {
        if !self.takes("(")? {
            return self.test();
        }
        self.depth += 1;
        if self.depth > DEPTH_MAX {
            return Err(PatternError::new(format!(
                "the filter has more than {DEPTH_MAX} parentheses in each other"
            )));
        }
        let test = self.any()?;
        self.depth -= 1;
        if self.takes(")")? { Ok(test) } else { Err(PatternError::new("the filter lacks a )")) }
    }

    fn test(&mut self) -> Result<Test, PatternError> {
        let selector = self.selector()?;
        if let Some(comparison) = self.comparison()? {
            return Ok(Test::Compare(selector, comparison, self.operand()?));
        }
        let words = self.words();
        let words: Vec<&str> = words.iter().map(String::as_str).collect();
        match words[..] {
            ["IS", "TRUE"] => Ok(Test::Is(selector, Value::Bool(true))),
            ["IS", "FALSE"] => Ok(Test::Is(selector, Value::Bool(false))),
            ["IS", "NULL"] => Ok(Test::Is(selector, Value::Null)),
            ["EXISTS"] => Ok(Test::Exists(selector, true)),
            ["NOT", "EXISTS"] => Ok(Test::Exists(selector, false)),
            _ => Err(PatternError::new(
                "a selector is followed by a comparison, IS TRUE, IS FALSE, IS NULL or NOT EXISTS",
            )),
        }
    }

    fn selector(&mut self) -> Result<Selector, PatternError> {
        if !self.takes("$")? {
            return Err(PatternError::new("a selector such as $.eventName is missing"));
        }
        let mut steps = Vec::new();
        loop {
            match self.chars.peek() {
                Some('.') => {
                    self.chars.next();
                    let name = self.while_(|char| char.is_alphanumeric() || char == '_' || char == '-');
                    steps.push(Step::Member(named(name)?));
                }
                Some('[') => {
                    self.chars.next();
                    let inner = self.while_(|char| char != ']');
                    self.chars.next();
                    let quoted = inner.strip_prefix('\'').and_then(|name| name.strip_suffix('\''));
                    steps.push(match (quoted, inner.parse()) {
                        (Some(name), _) => Step::Member(named(name.to_owned())?),
                        (None, Ok(index)) => Step::Element(index),
                        (None, Err(_)) => {
                            return Err(PatternError::new(format!(
                                "[{inner}] is neither [NUMBER] nor ['NAME']"
                            )));
                        }
                    });
                }
                _ if steps.is_empty() => {
                    return Err(PatternError::new("$ alone is no selector: write $.NAME"));
                }
                _ => return Ok(Selector(steps)),
            }
        }
    }

    fn comparison(&mut self) -> Result<Option<Comparison>, PatternError> {
        const ALL: [(&str, Comparison); 6] = [
            ("!=", Comparison::NotEqual),
            ("<=", Comparison::LessOrEqual),
            (">=", Comparison::GreaterOrEqual),
            ("=", Comparison::Equal),
            ("<", Comparison::Less),
            (">", Comparison::Greater),
        ];
        for (text, comparison) in ALL {
            if self.takes(text)? {
                return Ok(Some(comparison));
            }
        }
        Ok(None)
    }

    fn operand(&mut self) -> Result<Operand, PatternError> {
        self.space();
        let unclosed = |what: &str| PatternError::new(format!("a value lacks its closing {what}"));
        match self.chars.peek() {
            Some('"') => {
                self.chars.next();
                let mut text = String::new();
                loop {
                    match self.chars.next() {
                        Some('"') => return Ok(Operand::Text(Wildcard::plain(&text))),
                        Some('\\') => text.extend(self.chars.next()),
                        Some(char) => text.push(char),
                        None => return Err(unclosed("\"")),
                    }
                }
            }
            Some('%') => {
                self.chars.next();
                let text = self.while_(|char| char != '%');
                self.chars.next().ok_or_else(|| unclosed("%"))?;
                let regex = Regex::new(&text);
                regex
                    .map(Operand::Regex)
                    .map_err(|_| PatternError::new(format!("%{text}% is no regular expression")))
            }
            _ => {
                let text = self.while_(|char| !char.is_whitespace() && !"()&|{}\"".contains(char));
                match text.parse::<f64>() {
                    _ if text.is_empty() => Err(PatternError::new("a comparison lacks its value")),
                    Ok(number) => Ok(Operand::Number(number, text)),
                    Err(_) => Ok(Operand::Text(Wildcard::plain(&text))),
                }
            }
        }
    }

    /// The words up to the next sign.
    fn words(&mut self) -> Vec<String> {
        let mut words = Vec::new();
        loop {
            self.space();
            let word = self.while_(|char| char.is_ascii_alphabetic());
            if word.is_empty() {
                return words;
            }
            words.push(word.to_ascii_uppercase());
        }
    }

    /// Takes a sign, if it is next.
    fn takes(&mut self, sign: &str) -> Result<bool, PatternError> {
        self.space();
        let mut ahead = self.chars.clone();
        if !sign.chars().all(|char| ahead.next() == Some(char)) {
            return Ok(false);
        }
        self.chars = ahead;
        Ok(true)
    }

    fn space(&mut self) {
        self.while_(char::is_whitespace);
    }

    fn while_(&mut self, wanted: impl Fn(char) -> bool) -> String {
        let mut text = String::new();
        while let Some(char) = self.chars.next_if(|char| wanted(*char)) {
            text.push(char);
        }
        text
    }

    fn rest(mut self) -> String {
        self.space();
        self.chars.collect()
    }
}

fn one_or(mut tests: Vec<Test>, many: fn(Vec<Test>) -> Test) -> Test {
    match (tests.len(), tests.pop()) {
        (1, Some(only)) => only,
        (_, last) => {
            tests.extend(last);
            many(tests)
        }
    }
}

fn named(name: String) -> Result<String, PatternError> {
    if name.is_empty() { Err(PatternError::new("a selector lacks a name")) } else { Ok(name) }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test fails by panicking")]
mod tests {
    use serde_json::json;

    use super::*;

    fn holds(filter: &str) -> bool {
        let record = json!({
            "eventName": "ScheduleKeyDeletion", "eventSource": "kms.amazonaws.com", "errorCode": "AccessDenied",
            "readOnly": false, "nothing": null, "requestParameters": {"pendingWindowInDays": 7, "a b": "c"},
            "userIdentity": {"type": "Root", "arn": "arn:aws:iam::111122223333:root"},
            "resources": [{"ARN": "arn:k"}], "sourceIPAddress": "10.0.0.7",
        });
        filter.parse::<LogFilter>().unwrap_or_else(|error| panic!("{filter}: {error}")).matches(&record)
    }

    #[test]
    fn filters_are_cloudwatchs() {
        for yes in [
            r#"{ $.eventName = "ScheduleKeyDeletion" }"#,
            r#"{($.eventSource = kms.amazonaws.com) && (($.eventName=DisableKey)||($.eventName=ScheduleKeyDeletion))}"#,
            r#"{ ($.errorCode = "*UnauthorizedOperation") || ($.errorCode = "AccessDenied*") }"#,
            r#"{ $.userIdentity.type = "Root" && $.userIdentity.invokedBy NOT EXISTS && $.eventType NOT EXISTS }"#,
            "{ $.requestParameters.pendingWindowInDays < 8 && $.requestParameters.pendingWindowInDays >= 7 }",
            "{ $.requestParameters.pendingWindowInDays = 7.0 }",
            "{ $.requestParameters['a b'] = c }",
            "{ $.readOnly IS FALSE && $.nothing IS NULL && $.eventName EXISTS }",
            r#"{ $.resources[0].ARN = "arn:*" && $.eventName != "Decrypt" }"#,
            "{ $.sourceIPAddress = %^10\\.0\\.% }",
            "{ $.sourceIPAddress != 10.0.1.* }",
        ] {
            assert!(holds(yes), "{yes}");
        }
        for no in [
            r#"{ $.eventName = "schedulekeydeletion" }"#,
            r#"{ $.eventName = "Schedule" }"#,
            r#"{ $.missing != "a" }"#,
            "{ $.missing IS NULL }",
            "{ $.requestParameters.pendingWindowInDays > 7 }",
            "{ $.eventName > 7 }",
            "{ $.resources[1].ARN EXISTS }",
            r#"{ $.userIdentity = "*" }"#,
            "{ $.eventName = a || $.eventName = b && $.readOnly IS FALSE }",
        ] {
            assert!(!holds(no), "{no}");
        }
    }

    #[test]
    fn what_is_no_filter_says_why() {
        for (text, problem) in [
            ("$.a = b", "in braces"),
            ("{ }", "selector"),
            ("{ $ = a }", "$ alone"),
            ("{ $.a }", "followed by"),
            ("{ $.a = }", "lacks its value"),
            ("{ $.a = \"b }", "closing"),
            ("{ ($.a = b }", "lacks a )"),
            ("{ $.a = b ) }", "cannot be read"),
            ("{ $.a IS MAYBE }", "followed by"),
            ("{ $.a[x] = 1 }", "neither"),
            ("{ $.a = %(% }", "no regular expression"),
        ] {
            let error = text.parse::<LogFilter>().unwrap_err().to_string();
            assert!(error.contains(problem), "{text}: {error}");
        }
        let deep = format!("{{ {}$.a = b{} }}", "(".repeat(40), ")".repeat(40));
        assert!(deep.parse::<LogFilter>().unwrap_err().to_string().contains("parentheses"));
    }

    #[test]
    fn a_selector_finds_a_value() {
        let record = json!({"resources": [{"ARN": "k"}]});
        let selector: Selector = "$.resources[0].ARN".parse().unwrap();
        assert_eq!(selector.find(&record), Some(&json!("k")));
        assert!("resources".parse::<Selector>().is_err());
        assert!("$.a b".parse::<Selector>().is_err());
    }
}
