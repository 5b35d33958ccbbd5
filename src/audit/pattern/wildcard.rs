//! Texts with `*` in them.

/// A text in which `*` stands for any characters, none included; `\*` and `\\`
/// for themselves.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Wildcard {
    /// What is between the stars.
    parts: Vec<String>,
}

impl Wildcard {
    /// Reads one as event patterns have it.
    ///
    /// # Errors
    /// What is wrong, a text that follows a field's name.
    pub fn escaped(text: &str) -> Result<Wildcard, &'static str> {
        let mut parts = vec![String::new()];
        let mut chars = text.chars().peekable();
        while let Some(char) = chars.next() {
            match (char, chars.peek()) {
                ('*', Some('*')) => return Err("has consecutive wildcard characters"),
                ('*', _) => parts.push(String::new()),
                ('\\', Some('*' | '\\')) => {
                    parts.last_mut().into_iter().for_each(|part| part.extend(chars.next()))
                }
                ('\\', _) => return Err("has a backslash that is before neither * nor a backslash"),
                (char, _) => parts.last_mut().into_iter().for_each(|part| part.push(char)),
            }
        }
        Ok(Wildcard { parts })
    }

    /// One in which nothing but `*` has a meaning.
    pub fn plain(text: &str) -> Wildcard {
        Wildcard { parts: text.split('*').map(str::to_owned).collect() }
    }

    /// Whether a text is like it.
    pub fn matches(&self, text: &str) -> bool {
        let [first, middle @ .., last] = self.parts.as_slice() else {
            return self.parts.first().is_some_and(|only| only == text);
        };
        let Some(mut rest) = text.strip_prefix(first.as_str()) else { return false };
        for part in middle {
            // The earliest place leaves the most for the parts that follow.
            let Some((_, after)) = rest.split_once(part.as_str()) else { return false };
            rest = after;
        }
        rest.ends_with(last.as_str())
    }
}
