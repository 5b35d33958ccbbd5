//! What is wrong with a configuration: all of it at once.

use std::fmt;

/// Why a configuration was refused.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ConfigError {
    /// All that was found, at least one.
    pub problems: Vec<Problem>,
}

impl ConfigError {
    /// One problem.
    pub fn one(problem: Problem) -> Self {
        ConfigError { problems: vec![problem] }
    }
}

impl fmt::Display for ConfigError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, problem) in self.problems.iter().enumerate() {
            if index > 0 {
                writeln!(f)?;
            }
            write!(f, "{problem}")?;
        }
        Ok(())
    }
}

impl std::error::Error for ConfigError {}

/// One thing that is wrong, in one sentence.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problem {
    /// The file, environment variable or command line that says it.
    pub source: String,
    /// The key: `accounts[0].principals[1].name`; empty for the file itself.
    pub key: String,
    /// What is wrong. Never the value of a secret.
    pub text: String,
    /// What to do.
    pub remedy: String,
}

impl Problem {
    /// A problem from a text whose remedy stands after its first semicolon.
    pub(super) fn new(source: String, key: String, text: &str) -> Self {
        let (text, remedy) = text.split_once("; ").unwrap_or((text, "correct the value"));
        Problem { source, key, text: text.into(), remedy: remedy.into() }
    }
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: ", self.source)?;
        if !self.key.is_empty() {
            write!(f, "{}: ", self.key)?;
        }
        write!(f, "{}; {}", self.text, self.remedy)
    }
}

impl std::error::Error for Problem {}

/// Where a value stands in the configuration.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Key(pub Vec<String>);

impl Key {
    pub fn of(section: &str) -> Self {
        Key(section.split('.').map(str::to_owned).collect())
    }

    pub fn field(&self, name: &str) -> Self {
        let mut steps = self.0.clone();
        steps.push(name.to_owned());
        Key(steps)
    }

    pub fn index(&self, index: usize) -> Self {
        self.field(&index.to_string())
    }
}

impl fmt::Display for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (position, step) in self.0.iter().enumerate() {
            if position > 0 && step.bytes().all(|byte| byte.is_ascii_digit()) {
                write!(f, "[{step}]")?;
            } else if position > 0 {
                write!(f, ".{step}")?;
            } else {
                write!(f, "{step}")?;
            }
        }
        Ok(())
    }
}
