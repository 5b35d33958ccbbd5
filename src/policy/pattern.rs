//! Texts of a policy that are matched against a request: wildcards and policy
//! variables, split once when the policy is parsed.

use super::request::{ConditionKey, Request};
use super::truth::Truth;

/// A text with wildcards and variables.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Pattern {
    pieces: Box<[Piece]>,
}

#[derive(Debug, Clone, PartialEq)]
enum Piece {
    Text(Box<str>),
    /// `*`: any characters, or none.
    Any,
    /// `?`: one character.
    One,
    /// `${key}` or `${key, 'default'}`. Its value is text: a `*` in it is no wildcard.
    Variable {
        key: ConditionKey,
        default: Option<Box<str>>,
    },
}

/// What a text of a policy may contain.
#[derive(Debug, Clone, Copy)]
pub(super) struct Syntax {
    /// `*` and `?` are wildcards.
    pub(super) wildcards: bool,
    /// `${…}` is a variable: in Version 2012-10-17 only.
    pub(super) variables: bool,
}

/// How a pattern is compared.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) enum Compare {
    /// Character by character; wildcards cross everything.
    Exactly,
    /// The same without regard to case.
    IgnoringCase,
    /// As ARNs: a wildcard stays in its own part, of which there are six.
    AsArn,
}

impl Pattern {
    /// Splits a text. The error says what is wrong with it.
    pub(super) fn parse(text: &str, syntax: Syntax) -> Result<Self, String> {
        let mut pieces = Vec::new();
        let mut literal = String::new();
        let mut rest = text;
        while let Some(letter) = rest.chars().next() {
            let (piece, after) = match letter {
                '*' if syntax.wildcards => (Some(Piece::Any), rest.strip_prefix('*')),
                '?' if syntax.wildcards => (Some(Piece::One), rest.strip_prefix('?')),
                '$' if syntax.variables && rest.starts_with("${") => {
                    let (piece, after) = variable(rest)
                        .ok_or_else(|| format!("\"{text}\" has a malformed ${{variable}}"))??;
                    (Some(piece), Some(after))
                }
                _ => (None, rest.get(letter.len_utf8()..)),
            };
            match piece {
                Some(Piece::Text(escaped)) => literal.push_str(&escaped),
                Some(piece) => {
                    flush(&mut literal, &mut pieces);
                    pieces.push(piece);
                }
                None => literal.push(letter),
            }
            rest = after.unwrap_or_default();
        }
        flush(&mut literal, &mut pieces);
        Ok(Pattern { pieces: pieces.into() })
    }

    /// Whether the whole input matches. Unknown where a variable has no single
    /// value, or where ARNs are compared and the input is none.
    ///
    /// At worst the time is the product of both lengths, never exponential:
    /// only the last `*` is ever tried again.
    pub(super) fn matches(&self, input: &str, compare: Compare, request: &Request<'_>) -> Truth {
        if !self.pieces.iter().all(|piece| piece.resolvable(request)) {
            return Truth::Unknown;
        }
        match compare {
            Compare::AsArn => match last_fence(input) {
                Some(fence) => self.walk(input, compare, Some(fence), request).into(),
                None => Truth::Unknown,
            },
            _ => self.walk(input, compare, None, request).into(),
        }
    }

    /// The context keys of its variables.
    pub(super) fn context_keys(&self) -> impl Iterator<Item = &str> {
        self.pieces.iter().filter_map(|piece| match piece {
            Piece::Variable { key, .. } => key.context_name(),
            _ => None,
        })
    }

    /// Whether it begins with this text, or with a variable.
    pub(super) fn may_begin_with(&self, text: &str) -> bool {
        match self.pieces.first() {
            Some(Piece::Text(first)) => first.starts_with(text),
            Some(Piece::Variable { .. }) => true,
            _ => false,
        }
    }

    /// No wildcard takes a colon up to the byte offset `fence`.
    fn walk(&self, input: &str, compare: Compare, fence: Option<usize>, request: &Request<'_>) -> bool {
        let one_more = |from: usize| {
            let letter = input.get(from..)?.chars().next()?;
            let fenced = letter == ':' && fence.is_some_and(|fence| from <= fence);
            (!fenced).then(|| from + letter.len_utf8())
        };
        let (mut piece, mut at) = (0, 0);
        // Where the last `*` has got to: the piece after it, and its end.
        let mut star: Option<(usize, usize)> = None;
        loop {
            let step = match self.pieces.get(piece) {
                None if at == input.len() => return true,
                None => None,
                Some(Piece::Any) => {
                    if fence.is_none() && piece + 1 == self.pieces.len() {
                        return true;
                    }
                    star = Some((piece + 1, at));
                    Some(at)
                }
                Some(Piece::One) => one_more(at),
                Some(text) => text.resolve(request).and_then(|text| {
                    let rest = input.get(at..)?;
                    prefix_len(rest, text, compare).map(|taken| at + taken)
                }),
            };
            if let Some(next) = step {
                (piece, at) = (piece + 1, next);
                continue;
            }
            let Some(longer) = star.and_then(|(after, end)| Some((after, one_more(end)?))) else {
                return false;
            };
            star = Some(longer);
            (piece, at) = longer;
        }
    }
}

impl Piece {
    fn resolvable(&self, request: &Request<'_>) -> bool {
        !matches!(self, Piece::Variable { .. }) || self.resolve(request).is_some()
    }

    /// The text that it stands for. None for wildcards, and for a variable that
    /// has neither one value nor, being absent, a default.
    fn resolve<'a>(&'a self, request: &Request<'a>) -> Option<&'a str> {
        match self {
            Piece::Text(text) => Some(text),
            Piece::Any | Piece::One => None,
            Piece::Variable { key, default } => {
                let mut values = request.values(key);
                match (values.next(), values.next()) {
                    (None, _) => default.as_deref(),
                    (Some(value), None) => Some(value),
                    (Some(_), Some(_)) => None,
                }
            }
        }
    }
}

fn flush(literal: &mut String, pieces: &mut Vec<Piece>) {
    if !literal.is_empty() {
        pieces.push(Piece::Text(std::mem::take(literal).into()));
    }
}

/// Splits a `${…}` off. None where it is malformed; the inner error is that of its key.
fn variable(text: &str) -> Option<Result<(Piece, &str), String>> {
    let body = text.strip_prefix("${")?;
    for wildcard in ["*", "?", "$"] {
        if let Some(after) = body.strip_prefix(wildcard).and_then(|rest| rest.strip_prefix('}')) {
            return Some(Ok((Piece::Text(wildcard.into()), after)));
        }
    }
    let key_end = body.find(['}', ','])?;
    let (key, rest) = body.split_at_checked(key_end)?;
    let (default, after) = match rest.strip_prefix('}') {
        Some(after) => (None, after),
        None => {
            let quoted = rest.strip_prefix(',')?.trim_start_matches(' ').strip_prefix('\'')?;
            let (default, rest) = quoted.split_once('\'')?;
            (Some(default.into()), rest.trim_start_matches(' ').strip_prefix('}')?)
        }
    };
    Some(ConditionKey::parse(key.trim_matches(' ')).map(|key| (Piece::Variable { key, default }, after)))
}

/// The offset of the colon before an ARN's resource. None for what is no ARN.
fn last_fence(input: &str) -> Option<usize> {
    let colon = input.match_indices(':').nth(4).map(|(at, _)| at);
    colon.filter(|_| input.starts_with("arn:"))
}

/// How many bytes of the input the text takes, at its beginning.
fn prefix_len(input: &str, text: &str, compare: Compare) -> Option<usize> {
    if compare != Compare::IgnoringCase {
        return input.starts_with(text).then_some(text.len());
    }
    let mut rest = input.chars();
    for wanted in text.chars() {
        let found = rest.next()?;
        let same = found == wanted || found.to_lowercase().eq(wanted.to_lowercase());
        same.then_some(())?;
    }
    Some(input.len() - rest.as_str().len())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::request::{CallerKind, Context, PrincipalRef};
    use super::*;

    const FULL: Syntax = Syntax { wildcards: true, variables: true };

    fn request<'a>(context: &'a Context<'a>) -> Request<'a> {
        let arn = "arn:aws:iam::111122223333:user/team/al*ce";
        let principal = PrincipalRef { arn, account: "111122223333", kind: CallerKind::User, role_arn: None };
        Request {
            principal,
            action: "",
            resource: "",
            resource_account: "",
            context,
            encryption_context: None,
            granting: None,
        }
    }

    fn truth(pattern: &str, input: &str, compare: Compare, context: &Context<'_>) -> Truth {
        Pattern::parse(pattern, FULL).expect(pattern).matches(input, compare, &request(context))
    }

    fn matches(pattern: &str, input: &str) -> bool {
        truth(pattern, input, Compare::Exactly, &Context::new()) == Truth::True
    }

    #[test]
    fn wildcards_take_what_they_should() {
        for (pattern, input) in [
            ("*", ""),
            ("*", "a:b/c"),
            ("a*c", "ac"),
            ("a*c", "abcbc"),
            ("a?c", "aéc"),
            ("*b*b*", "abab"),
            ("?*", "x"),
            ("", ""),
            ("kms:*Key*", "kms:GenerateDataKeyPair"),
        ] {
            assert!(matches(pattern, input), "{pattern} {input}");
        }
        for (pattern, input) in
            [("", "a"), ("a?c", "ac"), ("a*c", "acb"), ("*b*b", "ab"), ("?", ""), ("A", "a"), ("a", "ab")]
        {
            assert!(!matches(pattern, input), "{pattern} {input}");
        }
    }

    #[test]
    fn a_variables_value_is_text() {
        assert!(matches("${aws:username}", "al*ce") && matches("${ aws:USERNAME }/*", "al*ce/x"));
        assert!(!matches("${aws:username}", "alice"));
        assert!(matches("${*}${?}${$}", "*?$") && !matches("${*}", "x") && !matches("${?}", "x"));
        assert!(matches("$5 {x}", "$5 {x}"));
    }

    #[test]
    fn a_variable_needs_exactly_one_value_or_a_default() {
        let mut context = Context::new();
        let value = |pattern: &str, context: &Context<'_>| truth(pattern, "red", Compare::Exactly, context);
        assert_eq!(value("${aws:PrincipalTag/team}", &context), Truth::Unknown);
        assert_eq!(value("*${aws:PrincipalTag/team}", &context), Truth::Unknown);
        assert_eq!(value("${aws:PrincipalTag/team, 'red'}", &context), Truth::True);
        context.insert("AWS:principaltag/team", "blue");
        assert_eq!(value("${aws:PrincipalTag/team,'red'}", &context), Truth::False);
        context.insert("aws:PrincipalTag/team", "red");
        assert_eq!(value("${aws:PrincipalTag/team, 'red'}", &context), Truth::Unknown);
    }

    #[test]
    fn malformed_variables_are_refused_where_variables_are_read() {
        for bad in
            ["${", "${}", "${aws:username", "${username}", "${aws:a, b}", "${aws:a, 'b}", "${aws:a, 'b'"]
        {
            assert!(Pattern::parse(bad, FULL).is_err(), "{bad}");
            let old = Pattern::parse(bad, Syntax { wildcards: false, variables: false }).expect(bad);
            let context = Context::new();
            assert_eq!(old.matches(bad, Compare::Exactly, &request(&context)), Truth::True);
        }
    }

    #[test]
    fn arns_are_compared_part_by_part() {
        let arn = |pattern: &str, input: &str| truth(pattern, input, Compare::AsArn, &Context::new());
        assert_eq!(arn("arn:aws:s3:*", "arn:aws:s3:::bucket"), Truth::False);
        assert_eq!(arn("arn:aws:s3::*", "arn:aws:s3:::bucket"), Truth::False);
        assert_eq!(arn("arn:*:s3:*:*:*", "arn:aws:s3:::a:b/c"), Truth::True);
        assert_eq!(arn("arn:aws:s3:?::x", "arn:aws:s3:::x"), Truth::False);
        assert_eq!(arn("arn:aws*:x", "arn:aws:s3:::x"), Truth::False);
        assert_eq!(arn("arn:aws:s3:::a*:b", "arn:aws:s3:::a:c:b"), Truth::True);
        assert_eq!(arn("${aws:PrincipalArn}", "arn:aws:iam::111122223333:user/team/al*ce"), Truth::True);
        assert_eq!(arn("arn:aws:s3:::x", "no:arn:at:all:it:is"), Truth::Unknown);
        assert_eq!(arn("arn:aws:s3:::x", "arn:aws:s3:::"), Truth::False);
    }

    #[test]
    fn case_is_ignored_where_asked_for() {
        let ignoring = |pattern: &str, input: &str| {
            truth(pattern, input, Compare::IgnoringCase, &Context::new()) == Truth::True
        };
        assert!(ignoring("KMS:en*", "kms:Encrypt") && ignoring("É", "é") && !ignoring("e", "é"));
    }

    /// The same by trying everything, to compare with.
    fn naive(pattern: &[char], input: &[char]) -> bool {
        match (pattern.split_first(), input.split_first()) {
            (None, None) => true,
            (Some((&'*', rest)), _) if naive(rest, input) => true,
            (Some((&'*', _)), Some((_, tail))) => naive(pattern, tail),
            (Some((&'?', rest)), Some((_, tail))) => naive(rest, tail),
            (Some((one, rest)), Some((other, tail))) if one == other => naive(rest, tail),
            _ => false,
        }
    }

    proptest! {
        #[test]
        fn it_agrees_with_trying_everything(pattern in "[ab*?:]{0,9}", input in "[ab:]{0,9}") {
            let letters = |text: &str| text.chars().collect::<Vec<_>>();
            prop_assert_eq!(matches(&pattern, &input), naive(&letters(&pattern), &letters(&input)));
        }

        #[test]
        fn an_arn_matches_when_each_of_its_parts_does(pattern in "arn(:[ab*?]{0,3}){5}", input in "arn(:[ab]{0,3}){5}") {
            let parts = pattern.split(':').zip(input.split(':')).all(|(pattern, input)| matches(pattern, input));
            let whole = truth(&pattern, &input, Compare::AsArn, &Context::new());
            prop_assert_eq!(whole, Truth::from(parts));
        }

        #[test]
        fn any_text_is_parsed_or_refused(text in any::<String>(), dollars in "[${}*?',:a ]{0,20}") {
            for text in [text, dollars] {
                if let Ok(pattern) = Pattern::parse(&text, FULL) {
                    let context = Context::new();
                    let _ = pattern.matches(&text, Compare::IgnoringCase, &request(&context));
                }
            }
        }
    }
}
