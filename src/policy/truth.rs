//! Three-valued logic, so that what cannot be told never opens a door.

/// Whether something holds. `and` is the lesser of two, `or` the greater.
///
/// An Allow needs `True`; a Deny only needs something else than `False`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Truth {
    False,
    /// A variable without a value, several values where one was expected, or a
    /// value that is not of the operator's type.
    Unknown,
    True,
}

impl Truth {
    /// Whether all hold. Stops at the first that does not.
    pub(super) fn all(truths: impl IntoIterator<Item = Truth>) -> Truth {
        let mut least = Truth::True;
        for truth in truths {
            least = least.min(truth);
            if least == Truth::False {
                break;
            }
        }
        least
    }

    /// Whether one holds. Stops at the first that does.
    pub(super) fn any(truths: impl IntoIterator<Item = Truth>) -> Truth {
        !Self::all(truths.into_iter().map(|truth| !truth))
    }

    /// What cannot be told does not hold.
    pub(super) fn certainly(self) -> Truth {
        Truth::from(self == Truth::True)
    }
}

impl std::ops::Not for Truth {
    type Output = Truth;

    fn not(self) -> Truth {
        match self {
            Truth::False => Truth::True,
            Truth::Unknown => Truth::Unknown,
            Truth::True => Truth::False,
        }
    }
}

impl From<bool> for Truth {
    fn from(holds: bool) -> Truth {
        if holds { Truth::True } else { Truth::False }
    }
}
