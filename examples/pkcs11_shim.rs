//! A PKCS#11 module that forwards to a real one and fails as it is told: the
//! fixture that makes an HSM's real failures testable.
//!
//! `PKCS11_SHIM_MODULE` names the real module, of which each copy of the
//! shim loads a copy of its own; `PKCS11_SHIM_RULES` names a file of rules,
//! which is read anew at each call. Both are read in C_Initialize. A line is a
//! rule, the first that fits a call decides:
//!
//! ```text
//! C_Encrypt rv=0x30                   fails with CKR_DEVICE_ERROR
//! C_Sign rv=0x30 after=10 times=3     passes ten calls, fails three, passes the rest
//! * delay_ms=200                      every function, late
//! C_Decrypt hang                      does not return before the rule is gone
//! C_GenerateKey rv=0x30 lost          does it, and says that it failed
//! C_Login log                         appends the name to the file `RULES.log`
//! sessions_max=4                      CKR_SESSION_COUNT for one more
//! pin_tries_max=3                     CKR_PIN_LOCKED after so many wrong PINs
//! gcm_iv                              AES-GCM encryption under an IV of the HSM's own
//! C_GenerateKey drop=0x40000212       leaves an attribute of the template out
//! C_Sign corrupt                      another last byte
//! gcm_bytes_max=16384                 CKR_DATA_LEN_RANGE for a longer AES-GCM input
//! # a comment
//! ```
//!
//! C_GetTokenInfo tells how many sessions are open, which SoftHSM2 does not.
#![allow(non_snake_case, clippy::missing_safety_doc, reason = "the functions are PKCS#11's")]
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test fixture: a panic is a failed test")]
#![allow(clippy::too_many_arguments, clippy::indexing_slicing, reason = "the functions are PKCS#11's")]

use std::collections::HashMap;
use std::ffi::c_void;
use std::io::Write as _;
use std::os::fd::{AsRawFd as _, IntoRawFd as _};
use std::path::PathBuf;
use std::sync::atomic::{AtomicPtr, AtomicU64, Ordering};
use std::sync::{LazyLock, Mutex};
use std::time::Duration;

use cryptoki_sys::*;

/// How often the rules are read while a call hangs.
const HANG_POLL: Duration = Duration::from_millis(5);

static REAL: AtomicPtr<CK_FUNCTION_LIST> = AtomicPtr::new(std::ptr::null_mut());
static RULES: Mutex<Option<PathBuf>> = Mutex::new(None);
static CALLS: LazyLock<Mutex<HashMap<String, u64>>> = LazyLock::new(Mutex::default);
static SESSIONS: AtomicU64 = AtomicU64::new(0);
static WRONG_PINS: AtomicU64 = AtomicU64::new(0);

/// The entry of every PKCS#11 module.
///
/// # Safety
/// `list` is valid for a write.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn C_GetFunctionList(list: *mut *mut CK_FUNCTION_LIST) -> CK_RV {
    // SAFETY: the caller's promise.
    unsafe { *list = LIST.0.get() };
    CKR_OK
}

struct List(std::cell::UnsafeCell<CK_FUNCTION_LIST>);
// SAFETY: nobody writes it.
unsafe impl Sync for List {}

macro_rules! arities {
    ($($name:ident ($($argument:ident: $type:ident),*),)*) => {
        $(
            /// Forwards the function of this place in the list.
            unsafe extern "C" fn $name<const PLACE: usize, $($type),*>($($argument: $type),*) -> CK_RV {
                answer(PLACE, || {
                    let function = real(PLACE);
                    // SAFETY: the place in the list has this signature: the type of
                    // LIST's field of the same place says so.
                    let function: unsafe extern "C" fn($($type),*) -> CK_RV =
                        unsafe { std::mem::transmute(function) };
                    // SAFETY: the arguments are the caller's.
                    unsafe { function($($argument),*) }
                })
            }
        )*
    };
}

arities! {
    f1(a: A),
    f2(a: A, b: B),
    f3(a: A, b: B, c: C),
    f4(a: A, b: B, c: C, d: D),
    f5(a: A, b: B, c: C, d: D, e: E),
    f6(a: A, b: B, c: C, d: D, e: E, f: F),
    f8(a: A, b: B, c: C, d: D, e: E, f: F, g: G, h: H),
}

const NAMES: &[&str] = &[
    "C_Initialize",
    "C_Finalize",
    "C_GetInfo",
    "C_GetFunctionList",
    "C_GetSlotList",
    "C_GetSlotInfo",
    "C_GetTokenInfo",
    "C_GetMechanismList",
    "C_GetMechanismInfo",
    "C_InitToken",
    "C_InitPIN",
    "C_SetPIN",
    "C_OpenSession",
    "C_CloseSession",
    "C_CloseAllSessions",
    "C_GetSessionInfo",
    "C_GetOperationState",
    "C_SetOperationState",
    "C_Login",
    "C_Logout",
    "C_CreateObject",
    "C_CopyObject",
    "C_DestroyObject",
    "C_GetObjectSize",
    "C_GetAttributeValue",
    "C_SetAttributeValue",
    "C_FindObjectsInit",
    "C_FindObjects",
    "C_FindObjectsFinal",
    "C_EncryptInit",
    "C_Encrypt",
    "C_EncryptUpdate",
    "C_EncryptFinal",
    "C_DecryptInit",
    "C_Decrypt",
    "C_DecryptUpdate",
    "C_DecryptFinal",
    "C_DigestInit",
    "C_Digest",
    "C_DigestUpdate",
    "C_DigestKey",
    "C_DigestFinal",
    "C_SignInit",
    "C_Sign",
    "C_SignUpdate",
    "C_SignFinal",
    "C_SignRecoverInit",
    "C_SignRecover",
    "C_VerifyInit",
    "C_Verify",
    "C_VerifyUpdate",
    "C_VerifyFinal",
    "C_VerifyRecoverInit",
    "C_VerifyRecover",
    "C_DigestEncryptUpdate",
    "C_DecryptDigestUpdate",
    "C_SignEncryptUpdate",
    "C_DecryptVerifyUpdate",
    "C_GenerateKey",
    "C_GenerateKeyPair",
    "C_WrapKey",
    "C_UnwrapKey",
    "C_DeriveKey",
    "C_SeedRandom",
    "C_GenerateRandom",
    "C_GetFunctionStatus",
    "C_CancelFunction",
    "C_WaitForSlotEvent",
];

/// What rules are made of besides the functions' names.
const WORDS: [&str; 14] = [
    "*",
    "rv",
    "after",
    "times",
    "delay_ms",
    "hang",
    "lost",
    "log",
    "sessions_max",
    "pin_tries_max",
    "gcm_iv",
    "drop",
    "corrupt",
    "gcm_bytes_max",
];

static LIST: List = List(std::cell::UnsafeCell::new(CK_FUNCTION_LIST {
    version: CK_VERSION { major: 2, minor: 40 },
    C_Initialize: Some(initialize),
    C_Finalize: Some(finalize),
    C_GetInfo: Some(f1::<2, _>),
    C_GetFunctionList: Some(C_GetFunctionList),
    C_GetSlotList: Some(f3::<4, _, _, _>),
    C_GetSlotInfo: Some(f2::<5, _, _>),
    C_GetTokenInfo: Some(token_info),
    C_GetMechanismList: Some(f3::<7, _, _, _>),
    C_GetMechanismInfo: Some(f3::<8, _, _, _>),
    C_InitToken: Some(f4::<9, _, _, _, _>),
    C_InitPIN: Some(f3::<10, _, _, _>),
    C_SetPIN: Some(f5::<11, _, _, _, _, _>),
    C_OpenSession: Some(open_session),
    C_CloseSession: Some(close_session),
    C_CloseAllSessions: Some(close_all_sessions),
    C_GetSessionInfo: Some(f2::<15, _, _>),
    C_GetOperationState: Some(f3::<16, _, _, _>),
    C_SetOperationState: Some(f5::<17, _, _, _, _, _>),
    C_Login: Some(login),
    C_Logout: Some(f1::<19, _>),
    C_CreateObject: Some(f4::<20, _, _, _, _>),
    C_CopyObject: Some(f5::<21, _, _, _, _, _>),
    C_DestroyObject: Some(f2::<22, _, _>),
    C_GetObjectSize: Some(f3::<23, _, _, _>),
    C_GetAttributeValue: Some(f4::<24, _, _, _, _>),
    C_SetAttributeValue: Some(f4::<25, _, _, _, _>),
    C_FindObjectsInit: Some(f3::<26, _, _, _>),
    C_FindObjects: Some(f4::<27, _, _, _, _>),
    C_FindObjectsFinal: Some(f1::<28, _>),
    C_EncryptInit: Some(encrypt_init),
    C_Encrypt: Some(encrypt),
    C_EncryptUpdate: Some(f5::<31, _, _, _, _, _>),
    C_EncryptFinal: Some(f3::<32, _, _, _>),
    C_DecryptInit: Some(f3::<33, _, _, _>),
    C_Decrypt: Some(f5::<34, _, _, _, _, _>),
    C_DecryptUpdate: Some(f5::<35, _, _, _, _, _>),
    C_DecryptFinal: Some(f3::<36, _, _, _>),
    C_DigestInit: Some(f2::<37, _, _>),
    C_Digest: Some(f5::<38, _, _, _, _, _>),
    C_DigestUpdate: Some(f3::<39, _, _, _>),
    C_DigestKey: Some(f2::<40, _, _>),
    C_DigestFinal: Some(f3::<41, _, _, _>),
    C_SignInit: Some(f3::<42, _, _, _>),
    C_Sign: Some(sign),
    C_SignUpdate: Some(f3::<44, _, _, _>),
    C_SignFinal: Some(f3::<45, _, _, _>),
    C_SignRecoverInit: Some(f3::<46, _, _, _>),
    C_SignRecover: Some(f5::<47, _, _, _, _, _>),
    C_VerifyInit: Some(f3::<48, _, _, _>),
    C_Verify: Some(f5::<49, _, _, _, _, _>),
    C_VerifyUpdate: Some(f3::<50, _, _, _>),
    C_VerifyFinal: Some(f3::<51, _, _, _>),
    C_VerifyRecoverInit: Some(f3::<52, _, _, _>),
    C_VerifyRecover: Some(f5::<53, _, _, _, _, _>),
    C_DigestEncryptUpdate: Some(f5::<54, _, _, _, _, _>),
    C_DecryptDigestUpdate: Some(f5::<55, _, _, _, _, _>),
    C_SignEncryptUpdate: Some(f5::<56, _, _, _, _, _>),
    C_DecryptVerifyUpdate: Some(f5::<57, _, _, _, _, _>),
    C_GenerateKey: Some(generate_key),
    C_GenerateKeyPair: Some(f8::<59, _, _, _, _, _, _, _, _>),
    C_WrapKey: Some(f6::<60, _, _, _, _, _, _>),
    C_UnwrapKey: Some(f8::<61, _, _, _, _, _, _, _, _>),
    C_DeriveKey: Some(f6::<62, _, _, _, _, _, _>),
    C_SeedRandom: Some(f3::<63, _, _, _>),
    C_GenerateRandom: Some(f3::<64, _, _, _>),
    C_GetFunctionStatus: Some(f1::<65, _>),
    C_CancelFunction: Some(f1::<66, _>),
    C_WaitForSlotEvent: Some(f3::<67, _, _, _>),
}));

/// The real module's function of this place in the list.
fn real(place: usize) -> *const c_void {
    let list = REAL.load(Ordering::Acquire);
    assert!(!list.is_null(), "{} before C_Initialize", NAMES[place]);
    // SAFETY: a list is its version, padded, and then pointers to functions.
    unsafe { *list.cast::<*const c_void>().add(1 + place) }
}

/// What the rules say of a call, and else the real module.
fn answer(place: usize, forward: impl FnOnce() -> CK_RV) -> CK_RV {
    let name = NAMES[place];
    let Some(rule) = rule_for(name) else { return forward() };
    if let Some(ms) = rule.number("delay_ms") {
        std::thread::sleep(Duration::from_millis(ms));
    }
    while rule.has("hang") && rules().contains(&rule.0) {
        std::thread::sleep(HANG_POLL);
    }
    match rule.number("rv") {
        Some(rv) if rule.has("lost") => {
            forward();
            rv as CK_RV
        }
        Some(rv) => rv as CK_RV,
        None => forward(),
    }
}

/// A line of the file.
struct Rule(String);

impl Rule {
    fn has(&self, word: &str) -> bool {
        self.0.split_whitespace().any(|found| found == word)
    }

    fn number(&self, name: &str) -> Option<u64> {
        let value = self.0.split_whitespace().find_map(|word| word.strip_prefix(name)?.strip_prefix('='))?;
        Some(match value.strip_prefix("0x") {
            Some(digits) => u64::from_str_radix(digits, 16).unwrap(),
            None => value.parse().unwrap(),
        })
    }
}

fn rules() -> Vec<String> {
    let file = RULES.lock().unwrap().clone();
    let text = file.and_then(|file| std::fs::read_to_string(file).ok()).unwrap_or_default();
    let rules = text.lines().filter(|line| !line.starts_with('#'));
    for word in rules.clone().flat_map(str::split_whitespace) {
        let name = word.split('=').next().unwrap();
        assert!(NAMES.contains(&name) || WORDS.contains(&name), "no rule has {word}");
    }
    rules.map(str::to_owned).collect()
}

/// The rule that this call is under, which it counts for.
fn rule_for(name: &str) -> Option<Rule> {
    for line in rules() {
        let rule = Rule(line);
        if !(rule.has(name) || rule.has("*")) {
            continue;
        }
        if rule.has("log") {
            log(name);
            continue;
        }
        let mut calls = CALLS.lock().unwrap();
        let count = calls.entry(rule.0.clone()).or_default();
        *count += 1;
        let first = rule.number("after").unwrap_or(0);
        let last = rule.number("times").map_or(u64::MAX, |times| first + times);
        if (first + 1..=last).contains(count) {
            return Some(rule);
        }
    }
    None
}

fn log(name: &str) {
    let mut file = RULES.lock().unwrap().clone().unwrap().into_os_string();
    file.push(".log");
    let file = std::fs::OpenOptions::new().create(true).append(true).open(file);
    writeln!(file.unwrap(), "{name}").unwrap();
}

/// A setting: a line that is no function's.
fn setting(name: &str) -> Option<u64> {
    rules().into_iter().find_map(|line| {
        let rule = Rule(line);
        rule.number(name).or_else(|| rule.has(name).then_some(1))
    })
}

unsafe extern "C" fn initialize(arguments: *mut c_void) -> CK_RV {
    *RULES.lock().unwrap() = std::env::var_os("PKCS11_SHIM_RULES").map(PathBuf::from);
    if REAL.load(Ordering::Acquire).is_null() {
        let module = std::env::var_os("PKCS11_SHIM_MODULE").expect("PKCS11_SHIM_MODULE");
        REAL.store(load(&PathBuf::from(module)), Ordering::Release);
    }
    // SAFETY: the caller's arguments.
    unsafe { f1::<0, _>(arguments) }
}

/// Loads a copy of the real module, which no other copy of the shim shares.
fn load(module: &std::path::Path) -> *mut CK_FUNCTION_LIST {
    let memory = rustix::fs::memfd_create("shimmed", rustix::fs::MemfdFlags::CLOEXEC).unwrap();
    let mut file = std::fs::File::from(memory);
    file.write_all(&std::fs::read(module).unwrap()).unwrap();
    let path = format!("/proc/self/fd/{}", file.as_raw_fd());
    let _open = file.into_raw_fd();
    // SAFETY: the environment names a PKCS#11 module.
    let library = Box::leak(Box::new(unsafe { Pkcs11::new(path) }.unwrap()));
    let mut list = std::ptr::null_mut();
    // SAFETY: the pointer is valid for a write.
    assert_eq!(unsafe { library.C_GetFunctionList(&mut list) }, CKR_OK);
    list
}

unsafe extern "C" fn finalize(reserved: *mut c_void) -> CK_RV {
    SESSIONS.store(0, Ordering::SeqCst);
    // SAFETY: the caller's arguments.
    unsafe { f1::<1, _>(reserved) }
}

unsafe extern "C" fn token_info(slot: CK_SLOT_ID, info: *mut CK_TOKEN_INFO) -> CK_RV {
    // SAFETY: the caller's arguments.
    let rv = unsafe { f2::<6, _, _>(slot, info) };
    if rv == CKR_OK {
        // SAFETY: the real module wrote it just now.
        unsafe { (*info).ulSessionCount = SESSIONS.load(Ordering::SeqCst) as CK_ULONG };
    }
    rv
}

unsafe extern "C" fn open_session(
    slot: CK_SLOT_ID,
    flags: CK_FLAGS,
    application: *mut c_void,
    notify: CK_NOTIFY,
    session: *mut CK_SESSION_HANDLE,
) -> CK_RV {
    if setting("sessions_max").is_some_and(|max| SESSIONS.load(Ordering::SeqCst) >= max) {
        return CKR_SESSION_COUNT;
    }
    // SAFETY: the caller's arguments.
    let rv = unsafe { f5::<12, _, _, _, _, _>(slot, flags, application, notify, session) };
    if rv == CKR_OK {
        SESSIONS.fetch_add(1, Ordering::SeqCst);
    }
    rv
}

unsafe extern "C" fn close_session(session: CK_SESSION_HANDLE) -> CK_RV {
    // SAFETY: the caller's arguments.
    let rv = unsafe { f1::<13, _>(session) };
    if rv == CKR_OK {
        SESSIONS.fetch_sub(1, Ordering::SeqCst);
    }
    rv
}

unsafe extern "C" fn close_all_sessions(slot: CK_SLOT_ID) -> CK_RV {
    SESSIONS.store(0, Ordering::SeqCst);
    // SAFETY: the caller's arguments.
    unsafe { f1::<14, _>(slot) }
}

unsafe extern "C" fn login(
    session: CK_SESSION_HANDLE,
    user: CK_USER_TYPE,
    pin: *mut CK_UTF8CHAR,
    length: CK_ULONG,
) -> CK_RV {
    if setting("pin_tries_max").is_some_and(|max| WRONG_PINS.load(Ordering::SeqCst) >= max) {
        return CKR_PIN_LOCKED;
    }
    // SAFETY: the caller's arguments.
    let rv = unsafe { f4::<18, _, _, _, _>(session, user, pin, length) };
    match rv {
        CKR_PIN_INCORRECT => drop(WRONG_PINS.fetch_add(1, Ordering::SeqCst)),
        CKR_OK => WRONG_PINS.store(0, Ordering::SeqCst),
        _ => {}
    }
    rv
}

unsafe extern "C" fn encrypt_init(
    session: CK_SESSION_HANDLE,
    mechanism: *mut CK_MECHANISM,
    key: CK_OBJECT_HANDLE,
) -> CK_RV {
    // SAFETY: the caller's mechanism, with the parameters of its kind.
    unsafe {
        if (*mechanism).mechanism == CKM_AES_GCM && setting("gcm_iv").is_some() {
            let parameters = (*mechanism).pParameter.cast::<CK_GCM_PARAMS>();
            f3::<64, _, _, _>(session, (*parameters).pIv, (*parameters).ulIvLen);
        }
        f3::<29, _, _, _>(session, mechanism, key)
    }
}

unsafe extern "C" fn encrypt(
    session: CK_SESSION_HANDLE,
    data: *mut CK_BYTE,
    length: CK_ULONG,
    output: *mut CK_BYTE,
    output_length: *mut CK_ULONG,
) -> CK_RV {
    if setting("gcm_bytes_max").is_some_and(|max| length > max) {
        return CKR_DATA_LEN_RANGE;
    }
    // SAFETY: the caller's arguments.
    unsafe { f5::<30, _, _, _, _, _>(session, data, length, output, output_length) }
}

unsafe extern "C" fn sign(
    session: CK_SESSION_HANDLE,
    data: *mut CK_BYTE,
    length: CK_ULONG,
    output: *mut CK_BYTE,
    output_length: *mut CK_ULONG,
) -> CK_RV {
    // SAFETY: the caller's arguments.
    let rv = unsafe { f5::<43, _, _, _, _, _>(session, data, length, output, output_length) };
    let corrupt = rules().into_iter().map(Rule).any(|rule| rule.has("C_Sign") && rule.has("corrupt"));
    if corrupt && rv == CKR_OK && !output.is_null() {
        // SAFETY: after CKR_OK the output has the length that is written there.
        unsafe { *output.add(*output_length as usize - 1) ^= 1 };
    }
    rv
}

unsafe extern "C" fn generate_key(
    session: CK_SESSION_HANDLE,
    mechanism: *mut CK_MECHANISM,
    template: *mut CK_ATTRIBUTE,
    count: CK_ULONG,
    key: *mut CK_OBJECT_HANDLE,
) -> CK_RV {
    let rules = rules().into_iter().map(Rule).filter(|rule| rule.has("C_GenerateKey"));
    let dropped: Vec<u64> = rules.filter_map(|rule| rule.number("drop")).collect();
    // SAFETY: the caller's template, of this length.
    let mut kept = unsafe { std::slice::from_raw_parts(template, count as usize) }.to_vec();
    kept.retain(|attribute| !dropped.contains(&attribute.type_));
    let (template, count) = (kept.as_mut_ptr(), kept.len() as CK_ULONG);
    // SAFETY: the caller's arguments, and what is left of the template.
    unsafe { f5::<58, _, _, _, _, _>(session, mechanism, template, count, key) }
}
