//! The HSM layer's metrics. Handles are made once per member: no label is
//! looked up on the way of a call. A recorder must be installed before.

use std::time::Duration;

use metrics::{Counter, Gauge, Histogram};

use super::{HsmError, MemberState};

macro_rules! functions {
    ($($variant:ident $name:literal,)*) => {
        /// What a call is counted as.
        #[derive(Debug, Clone, Copy, PartialEq, Eq)]
        pub(crate) enum Function { $($variant,)* }

        impl Function {
            const ALL: &'static [(Function, &'static str)] = &[$((Function::$variant, $name),)*];
        }
    };
}

functions! {
    Encrypt "encrypt",
    Decrypt "decrypt",
    Sign "sign",
    Mac "mac",
    Agree "agree",
    Random "random",
    Generate "generate",
    Import "import",
    DataKeyPair "data_key_pair",
    Destroy "destroy",
    Find "find",
    Load "load",
    Install "install",
}

impl Function {
    /// Whether it makes, brings or destroys keys: such calls take one lane.
    pub(crate) fn takes_lane(self) -> bool {
        matches!(
            self,
            Function::Generate
                | Function::Import
                | Function::DataKeyPair
                | Function::Destroy
                | Function::Install
        )
    }
}

const RESULTS: [&str; 7] = ["ok", "input", "unsupported", "unavailable", "missing", "busy", "device"];

/// One member's metrics.
pub(crate) struct Meters {
    calls: Vec<([Counter; RESULTS.len()], Histogram)>,
    queue_depth: Gauge,
    sessions: Gauge,
    state: Gauge,
    serving: Gauge,
}

impl Meters {
    pub(crate) fn new(member: &str) -> Meters {
        let member = member.to_owned();
        let calls = Function::ALL
            .iter()
            .map(|(_, function)| {
                let counters = RESULTS.map(|result| {
                    metrics::counter!("strongroom_hsm_calls_total",
                        "member" => member.clone(), "function" => *function, "result" => result)
                });
                let seconds = metrics::histogram!("strongroom_hsm_call_seconds",
                    "member" => member.clone(), "function" => *function);
                (counters, seconds)
            })
            .collect();
        Meters {
            calls,
            queue_depth: metrics::gauge!("strongroom_hsm_queue_depth", "member" => member.clone()),
            sessions: metrics::gauge!("strongroom_hsm_sessions", "member" => member.clone()),
            state: metrics::gauge!("strongroom_hsm_member_state", "member" => member.clone()),
            serving: metrics::gauge!("strongroom_hsm_member_serving", "member" => member),
        }
    }

    /// Counts a call that ran for `elapsed` on its thread.
    pub(crate) fn call(&self, function: Function, result: Result<(), &HsmError>, elapsed: Duration) {
        if let Some((counters, seconds)) = self.calls.get(function as usize) {
            if let Some(counter) = counters.get(result_index(result)) {
                counter.increment(1);
            }
            seconds.record(elapsed);
        }
    }

    pub(crate) fn queue_depth(&self, waiting: usize) {
        self.queue_depth.set(waiting as f64);
    }

    /// Counts open sessions.
    pub(crate) fn sessions(&self) -> Gauge {
        self.sessions.clone()
    }

    /// 0 attaching, 1 serving, 2 lost, 3 refused, 4 in maintenance, 5 synchronizing.
    pub(crate) fn state(&self, state: MemberState) {
        self.serving.set(f64::from(u8::from(state == MemberState::Serving)));
        self.state.set(match state {
            MemberState::Attaching => 0.0,
            MemberState::Serving => 1.0,
            MemberState::Lost => 2.0,
            MemberState::Refused => 3.0,
            MemberState::Maintenance => 4.0,
            MemberState::Synchronizing => 5.0,
        });
    }
}

fn result_index(result: Result<(), &HsmError>) -> usize {
    match result {
        Ok(_) => 0,
        Err(HsmError::Input | HsmError::Unfit) => 1,
        Err(HsmError::Unsupported(_)) => 2,
        Err(HsmError::Unavailable(_)) => 3,
        Err(HsmError::Missing(_)) => 4,
        Err(HsmError::Busy) => 5,
        Err(HsmError::Device(_) | HsmError::Deadline) => 6,
    }
}
