//! What a PKCS#11 return value means for who goes on how.

use cryptoki_sys::*;

use super::HsmError;

/// Why a step on a session failed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Failure {
    /// A PKCS#11 function said so.
    Call {
        /// Its name.
        function: &'static str,
        /// What it returned.
        rv: CK_RV,
    },
    /// The module was finalised; its handles are void.
    Closed,
    /// We refused, or found, something ourselves.
    Ours(HsmError),
}

impl From<HsmError> for Failure {
    fn from(error: HsmError) -> Self {
        Failure::Ours(error)
    }
}

impl std::fmt::Display for Failure {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Failure::Call { function, rv } => write!(f, "{function}: {} (0x{rv:08X})", name(*rv)),
            Failure::Closed => write!(f, "the module is being initialised again"),
            Failure::Ours(error) => write!(f, "{error}"),
        }
    }
}

impl Failure {
    /// Whether a handle was not known to the token.
    pub(crate) fn is_unknown_object(&self) -> bool {
        matches!(self, Failure::Call { rv, .. }
            if matches!(*rv, CKR_OBJECT_HANDLE_INVALID | CKR_KEY_HANDLE_INVALID))
    }

    /// Whether a handle that is not a caller's key was not known to the token:
    /// our wrapping key's, or that of an object just made. While the token is
    /// well, it is from before the token went and came back.
    pub(crate) fn is_own_object(&self) -> bool {
        matches!(self, Failure::Call { function, rv } if match *rv {
            CKR_UNWRAPPING_KEY_HANDLE_INVALID | CKR_WRAPPING_KEY_HANDLE_INVALID => true,
            CKR_OBJECT_HANDLE_INVALID | CKR_KEY_HANDLE_INVALID => matches!(
                *function,
                "C_WrapKey" | "C_UnwrapKey" | "C_GetAttributeValue" | "C_DestroyObject"
            ),
            _ => false,
        })
    }

    /// Whether the token answered, rather than being away, busy or without our
    /// login.
    pub(crate) fn is_judgement(&self) -> bool {
        match self {
            Failure::Closed => false,
            Failure::Ours(_) => true,
            Failure::Call { function, rv } => !matches!(
                class(function, *rv),
                Class::TokenGone | Class::NewSession | Class::LogIn | Class::Busy
            ),
        }
    }

    /// Whether the token only lacks room for now.
    pub(crate) fn is_busy(&self) -> bool {
        matches!(self, Failure::Call { function, rv } if class(function, *rv) == Class::Busy)
    }

    /// C_UnwrapKey where it unwraps what a caller sent.
    pub(crate) const UNWRAP_INPUT: &'static str = "C_UnwrapKey of a caller's material";

    /// Whether the function that failed works on what a caller sent, so that
    /// the caller may be to blame.
    pub(crate) fn takes_input(&self) -> bool {
        matches!(self, Failure::Call { function, .. }
        if matches!(
            *function,
            "C_Encrypt" | "C_DecryptInit" | "C_Decrypt" | "C_Sign" | "C_DeriveKey" | Self::UNWRAP_INPUT
        ))
    }
}

/// What to do about a return value.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Class {
    /// The session is of no use: open another.
    NewSession,
    /// The login is gone, and with it every handle of a private object.
    LogIn,
    /// The token is gone: initialise the module again and find it.
    TokenGone,
    /// The caller's fault or the HSM's: ask the canary.
    Ambiguous,
    /// Try another member, or push back.
    Busy,
    /// The input is wrong.
    Caller,
    /// A human must act; never tried again by itself.
    Operator,
    /// The HSM failed in a way of its own.
    Device,
}

/// What `function` means by returning `rv`.
pub(crate) fn class(function: &str, rv: CK_RV) -> Class {
    match rv {
        CKR_SESSION_HANDLE_INVALID
        | CKR_SESSION_CLOSED
        | CKR_OPERATION_ACTIVE
        | CKR_OPERATION_NOT_INITIALIZED => Class::NewSession,
        CKR_USER_NOT_LOGGED_IN => Class::LogIn,
        CKR_DEVICE_REMOVED
        | CKR_TOKEN_NOT_PRESENT
        | CKR_TOKEN_NOT_RECOGNIZED
        | CKR_SLOT_ID_INVALID
        | CKR_CRYPTOKI_NOT_INITIALIZED => Class::TokenGone,
        CKR_GENERAL_ERROR if matches!(function, "C_GetTokenInfo" | "C_Login") => Class::TokenGone,
        // KEY_HANDLE_INVALID is what others say where SoftHSM2 says OBJECT_HANDLE_INVALID.
        CKR_OBJECT_HANDLE_INVALID
        | CKR_KEY_HANDLE_INVALID
        | CKR_UNWRAPPING_KEY_HANDLE_INVALID
        | CKR_WRAPPING_KEY_HANDLE_INVALID
        | CKR_GENERAL_ERROR
        | CKR_DEVICE_ERROR
        | CKR_FUNCTION_FAILED => Class::Ambiguous,
        CKR_HOST_MEMORY | CKR_DEVICE_MEMORY | CKR_SESSION_COUNT => Class::Busy,
        CKR_ENCRYPTED_DATA_INVALID
        | CKR_ENCRYPTED_DATA_LEN_RANGE
        | CKR_SIGNATURE_INVALID
        | CKR_SIGNATURE_LEN_RANGE
        | CKR_DATA_INVALID
        | CKR_DATA_LEN_RANGE
        | CKR_WRAPPED_KEY_INVALID
        | CKR_WRAPPED_KEY_LEN_RANGE
        | CKR_MECHANISM_PARAM_INVALID
        | CKR_KEY_SIZE_RANGE => Class::Caller,
        CKR_PIN_INCORRECT
        | CKR_PIN_INVALID
        | CKR_PIN_LEN_RANGE
        | CKR_PIN_LOCKED
        | CKR_PIN_EXPIRED
        | CKR_USER_PIN_NOT_INITIALIZED
        | CKR_USER_ANOTHER_ALREADY_LOGGED_IN
        | CKR_USER_TOO_MANY_TYPES => Class::Operator,
        _ => Class::Device,
    }
}

macro_rules! names {
    ($($name:ident)*) => {
        /// The standard's name of a return value.
        fn name(rv: CK_RV) -> &'static str {
            match rv {
                $($name => stringify!($name),)*
                _ => "another CKR",
            }
        }
    };
}

names! {
    CKR_HOST_MEMORY CKR_SLOT_ID_INVALID CKR_GENERAL_ERROR CKR_FUNCTION_FAILED CKR_ARGUMENTS_BAD
    CKR_ATTRIBUTE_READ_ONLY CKR_ATTRIBUTE_SENSITIVE CKR_ATTRIBUTE_TYPE_INVALID
    CKR_ATTRIBUTE_VALUE_INVALID CKR_ACTION_PROHIBITED CKR_DATA_INVALID CKR_DATA_LEN_RANGE
    CKR_DEVICE_ERROR CKR_DEVICE_MEMORY CKR_DEVICE_REMOVED CKR_ENCRYPTED_DATA_INVALID
    CKR_ENCRYPTED_DATA_LEN_RANGE CKR_FUNCTION_NOT_SUPPORTED CKR_KEY_HANDLE_INVALID
    CKR_KEY_SIZE_RANGE CKR_KEY_TYPE_INCONSISTENT CKR_KEY_NOT_WRAPPABLE CKR_KEY_UNEXTRACTABLE
    CKR_KEY_FUNCTION_NOT_PERMITTED CKR_MECHANISM_INVALID CKR_MECHANISM_PARAM_INVALID
    CKR_OBJECT_HANDLE_INVALID CKR_OPERATION_ACTIVE CKR_OPERATION_NOT_INITIALIZED
    CKR_USER_ANOTHER_ALREADY_LOGGED_IN CKR_USER_TOO_MANY_TYPES CKR_PIN_INCORRECT CKR_PIN_INVALID CKR_PIN_LEN_RANGE CKR_PIN_EXPIRED CKR_PIN_LOCKED
    CKR_SESSION_CLOSED CKR_SESSION_COUNT CKR_SESSION_HANDLE_INVALID CKR_SESSION_READ_ONLY
    CKR_SIGNATURE_INVALID CKR_SIGNATURE_LEN_RANGE CKR_TEMPLATE_INCOMPLETE
    CKR_TEMPLATE_INCONSISTENT CKR_TOKEN_NOT_PRESENT CKR_TOKEN_NOT_RECOGNIZED
    CKR_TOKEN_WRITE_PROTECTED CKR_USER_ALREADY_LOGGED_IN CKR_USER_NOT_LOGGED_IN
    CKR_USER_PIN_NOT_INITIALIZED CKR_USER_TYPE_INVALID CKR_WRAPPED_KEY_INVALID
    CKR_WRAPPED_KEY_LEN_RANGE CKR_CRYPTOKI_NOT_INITIALIZED CKR_CRYPTOKI_ALREADY_INITIALIZED
    CKR_BUFFER_TOO_SMALL CKR_FUNCTION_REJECTED CKR_UNWRAPPING_KEY_HANDLE_INVALID
    CKR_WRAPPING_KEY_HANDLE_INVALID
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_handle_of_ours_is_told_from_a_callers_key() {
        let own = |function, rv| Failure::Call { function, rv }.is_own_object();
        assert!(own("C_UnwrapKey", CKR_UNWRAPPING_KEY_HANDLE_INVALID));
        assert!(own("C_WrapKey", CKR_WRAPPING_KEY_HANDLE_INVALID));
        assert!(own("C_UnwrapKey", CKR_KEY_HANDLE_INVALID));
        assert!(own("C_DestroyObject", CKR_OBJECT_HANDLE_INVALID));
        assert!(!own("C_SignInit", CKR_OBJECT_HANDLE_INVALID));
        assert!(!own("C_DeriveKey", CKR_KEY_HANDLE_INVALID));
        assert!(!own("C_UnwrapKey", CKR_GENERAL_ERROR));
    }

    /// One row per return value that the daemon has an answer to.
    #[test]
    fn each_return_value_has_its_class() {
        let table = [
            ("C_Sign", CKR_SESSION_HANDLE_INVALID, Class::NewSession),
            ("C_Sign", CKR_SESSION_CLOSED, Class::NewSession),
            ("C_SignInit", CKR_OPERATION_ACTIVE, Class::NewSession),
            ("C_Sign", CKR_OPERATION_NOT_INITIALIZED, Class::NewSession),
            ("C_Sign", CKR_USER_NOT_LOGGED_IN, Class::LogIn),
            ("C_Sign", CKR_DEVICE_REMOVED, Class::TokenGone),
            ("C_OpenSession", CKR_TOKEN_NOT_PRESENT, Class::TokenGone),
            ("C_OpenSession", CKR_TOKEN_NOT_RECOGNIZED, Class::TokenGone),
            ("C_OpenSession", CKR_SLOT_ID_INVALID, Class::TokenGone),
            ("C_Sign", CKR_CRYPTOKI_NOT_INITIALIZED, Class::TokenGone),
            ("C_GetTokenInfo", CKR_GENERAL_ERROR, Class::TokenGone),
            ("C_Login", CKR_GENERAL_ERROR, Class::TokenGone),
            ("C_Decrypt", CKR_GENERAL_ERROR, Class::Ambiguous),
            ("C_Login", CKR_DEVICE_ERROR, Class::Ambiguous),
            ("C_SignInit", CKR_OBJECT_HANDLE_INVALID, Class::Ambiguous),
            ("C_Decrypt", CKR_FUNCTION_FAILED, Class::Ambiguous),
            ("C_OpenSession", CKR_SESSION_COUNT, Class::Busy),
            // A token folder that is gone, seen while a key is loaded or made.
            ("C_UnwrapKey", CKR_UNWRAPPING_KEY_HANDLE_INVALID, Class::Ambiguous),
            ("C_WrapKey", CKR_WRAPPING_KEY_HANDLE_INVALID, Class::Ambiguous),
            ("C_UnwrapKey", CKR_HOST_MEMORY, Class::Busy),
            ("C_UnwrapKey", CKR_DEVICE_MEMORY, Class::Busy),
            ("C_Decrypt", CKR_ENCRYPTED_DATA_INVALID, Class::Caller),
            ("C_Decrypt", CKR_ENCRYPTED_DATA_LEN_RANGE, Class::Caller),
            ("C_Sign", CKR_DATA_LEN_RANGE, Class::Caller),
            ("C_DeriveKey", CKR_MECHANISM_PARAM_INVALID, Class::Caller),
            ("C_UnwrapKey", CKR_WRAPPED_KEY_INVALID, Class::Caller),
            ("C_Login", CKR_PIN_INCORRECT, Class::Operator),
            ("C_Login", CKR_PIN_LOCKED, Class::Operator),
            ("C_Login", CKR_PIN_EXPIRED, Class::Operator),
            ("C_Login", CKR_PIN_LEN_RANGE, Class::Operator),
            ("C_Login", CKR_USER_PIN_NOT_INITIALIZED, Class::Operator),
            ("C_Login", CKR_USER_ANOTHER_ALREADY_LOGGED_IN, Class::Operator),
            ("C_Sign", CKR_MECHANISM_INVALID, Class::Device),
            ("C_Sign", 0x8000_0001, Class::Device),
        ];
        for (function, rv, expected) in table {
            assert_eq!(class(function, rv), expected, "{function} {}", name(rv));
        }
    }
}
