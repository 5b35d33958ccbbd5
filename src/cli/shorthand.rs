//! The AWS CLI's shorthand for structures and maps, read into JSON:
//!
//! ```text
//! pairs  = pair *("," pair)
//! pair   = name "=" value
//! value  = "{" pairs "}" | "[" value *("," value) "]" | quoted | plain
//! quoted = "…" or '…', a backslash before the quote itself or a backslash
//! plain  = anything up to "," (or the closing bracket), a backslash before "," or a backslash
//! ```

use serde_json::{Map, Value};

/// How deep values may nest; a limit for the reader's stack.
const DEPTH_LIMIT: u8 = 16;

/// Reads `a=b,c=d`. Every leaf is a string.
///
/// # Errors
/// What is wrong and where, without the values.
pub fn parse(text: &str) -> Result<Map<String, Value>, String> {
    let mut reader = Reader { rest: text, length: text.len(), closers: Vec::new() };
    let pairs = reader.pairs()?;
    match reader.rest {
        "" => Ok(pairs),
        _ => Err(reader.expected("',' or the end")),
    }
}

struct Reader<'a> {
    rest: &'a str,
    length: usize,
    /// The brackets that are open, as the characters that close them.
    closers: Vec<char>,
}

impl Reader<'_> {
    fn pairs(&mut self) -> Result<Map<String, Value>, String> {
        let mut pairs = Map::new();
        loop {
            let name = self.name()?;
            let value = self.value()?;
            if pairs.insert(name.clone(), value).is_some() {
                return Err(format!("'{name}' is given twice"));
            }
            if !self.eat(',') {
                return Ok(pairs);
            }
        }
    }

    fn name(&mut self) -> Result<String, String> {
        let name = match self.rest.chars().next() {
            Some(quote @ ('"' | '\'')) => self.quoted(quote)?,
            _ => {
                let end = self.rest.find(['=', ',', '{', '}', '[', ']']).unwrap_or(self.rest.len());
                let (name, rest) = self.rest.split_at(end);
                self.rest = rest;
                name.trim().to_owned()
            }
        };
        if !self.eat('=') {
            return Err(self.expected("name=value"));
        }
        Ok(name)
    }

    fn value(&mut self) -> Result<Value, String> {
        match self.rest.chars().next() {
            Some('{') => self.nested('}', |reader| reader.pairs().map(Value::Object)),
            Some('[') => self.nested(']', |reader| reader.list().map(Value::Array)),
            Some(quote @ ('"' | '\'')) => self.quoted(quote).map(Value::String),
            _ => self.plain().map(Value::String),
        }
    }

    fn list(&mut self) -> Result<Vec<Value>, String> {
        let mut values = Vec::new();
        if self.rest.starts_with(']') {
            return Ok(values);
        }
        loop {
            values.push(self.value()?);
            if !self.eat(',') {
                return Ok(values);
            }
        }
    }

    fn nested(
        &mut self,
        closer: char,
        read: impl FnOnce(&mut Self) -> Result<Value, String>,
    ) -> Result<Value, String> {
        if self.closers.len() >= usize::from(DEPTH_LIMIT) {
            return Err(format!("values nest deeper than {DEPTH_LIMIT}"));
        }
        self.advance(1);
        self.closers.push(closer);
        let value = read(self)?;
        self.closers.pop();
        if self.eat(closer) { Ok(value) } else { Err(self.expected(&format!("'{closer}'"))) }
    }

    fn quoted(&mut self, quote: char) -> Result<String, String> {
        self.advance(1);
        let text = self.unescaped(|c| c == quote, &[quote, '\\']);
        if self.eat(quote) { Ok(text) } else { Err(self.expected(&format!("a closing {quote}"))) }
    }

    fn plain(&mut self) -> Result<String, String> {
        let closer = self.closers.last().copied();
        Ok(self.unescaped(|c| c == ',' || Some(c) == closer, &[',', '\\']))
    }

    /// Takes characters up to one that ends the value; a backslash before one
    /// of `escapable` takes that one literally.
    fn unescaped(&mut self, ends: impl Fn(char) -> bool, escapable: &[char]) -> String {
        let mut text = String::new();
        let mut letters = self.rest.char_indices().peekable();
        let mut end = self.rest.len();
        while let Some((at, letter)) = letters.next() {
            let escaped = letters.peek().map(|(_, next)| *next).filter(|next| escapable.contains(next));
            match escaped {
                Some(next) if letter == '\\' => {
                    text.push(next);
                    letters.next();
                }
                _ if ends(letter) => {
                    end = at;
                    break;
                }
                _ => text.push(letter),
            }
        }
        self.advance(end);
        text
    }

    fn eat(&mut self, letter: char) -> bool {
        match self.rest.strip_prefix(letter) {
            Some(rest) => {
                self.rest = rest;
                true
            }
            None => false,
        }
    }

    fn advance(&mut self, bytes: usize) {
        self.rest = self.rest.get(bytes..).unwrap_or_default();
    }

    fn expected(&self, what: &str) -> String {
        format!("{what} is expected at character {}", self.length - self.rest.len() + 1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn pairs_are_read_as_the_aws_cli_reads_them() {
        let read = |text: &str| Value::Object(parse(text).unwrap());
        assert_eq!(read("a=b,c=d"), json!({"a": "b", "c": "d"}));
        assert_eq!(read("TagKey=a,TagValue="), json!({"TagKey": "a", "TagValue": ""}));
        assert_eq!(read("a=b=c"), json!({"a": "b=c"}));
        assert_eq!(read(r#"a="b,c",d='e"f'"#), json!({"a": "b,c", "d": "e\"f"}));
        assert_eq!(read(r#"a=b\,c,d=e\\f,g=h\i"#), json!({"a": "b,c", "d": "e\\f", "g": "h\\i"}));
        assert_eq!(read(r#"a="b\"c\\""#), json!({"a": "b\"c\\"}));
        assert_eq!(read("a={b=c,d={e=f}},g=h"), json!({"a": {"b": "c", "d": {"e": "f"}}, "g": "h"}));
        assert_eq!(read("a=[b,c],d=[]"), json!({"a": ["b", "c"], "d": []}));
        assert_eq!(read("a=[{b=c},{b=d}]"), json!({"a": [{"b": "c"}, {"b": "d"}]}));
        assert_eq!(read("Schlüssel=Straße"), json!({"Schlüssel": "Straße"}));
    }

    #[test]
    fn what_is_wrong_is_said() {
        for bad in ["", "a", "a=b,", "a=b,c", "a=\"b", "a={b=c", "a=[b", "a={b=c}d", "a=b,a=c"] {
            assert!(parse(bad).is_err(), "{bad}");
        }
        assert!(parse(&format!("a={}", "[".repeat(100_000))).unwrap_err().contains("deeper"));
        assert_eq!(parse("a=b,c").unwrap_err(), "name=value is expected at character 6");
    }

    proptest::proptest! {
        #[test]
        fn no_text_panics_it(text in "[a-c=,\\\\{}\\[\\]\"'é]{0,24}") {
            let _ = parse(&text);
        }
    }
}
