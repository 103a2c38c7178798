//! The system calls that the standard library does not offer; all of this crate's `unsafe` is here.

use std::{
    io,
    os::unix::process::CommandExt,
    process::Command,
    sync::atomic::{AtomicI32, Ordering},
};

use libc::{c_int, c_void, siginfo_t};

/// The user that this process acts as.
#[expect(unsafe_code, reason = "libc declares every foreign function unsafe")]
pub(crate) fn effective_uid() -> u32 {
    // SAFETY: geteuid takes nothing, touches no memory of ours and cannot fail.
    unsafe { libc::geteuid() }
}

/// Sends a signal to one process.
#[expect(unsafe_code, reason = "libc declares every foreign function unsafe")]
pub(crate) fn kill(pid: u32, signal: c_int) -> io::Result<()> {
    // Zero and negative numbers mean whole process groups, our own among them.
    let pid = libc::pid_t::try_from(pid).ok().filter(|&pid| pid > 0);
    let pid = pid.ok_or_else(|| io::Error::from(io::ErrorKind::InvalidInput))?;
    // SAFETY: kill takes two integers and touches no memory of ours.
    if unsafe { libc::kill(pid, signal) } == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Whether a process with this pid exists, whoever owns it.
pub(crate) fn exists(pid: u32) -> bool {
    match kill(pid, 0) {
        Ok(()) => true,
        Err(cause) => cause.raw_os_error() == Some(libc::EPERM),
    }
}

/// Whether a child stays in our session or gets its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Session {
    /// Ours: the terminal's Ctrl-C reaches it.
    Shared,
    /// Its own: what the terminal sends does not reach it.
    Own,
}

/// Prepares a command so that its process gets `signal` when the *thread* that spawns it ends (Linux; a
/// no-op elsewhere), so spawn it from a thread that lives as long as the process should.
///
/// The standard library runs this after it has changed the uid, as it must be: that change clears it.
#[expect(unsafe_code, reason = "pre_exec is unsafe: its closure runs between fork and exec")]
pub fn die_with_parent(command: &mut Command, signal: c_int, session: Session) {
    let parent = std::process::id();
    let hook = move || {
        if session == Session::Own {
            // SAFETY: setsid takes nothing and touches no memory of ours.
            let outcome = unsafe { libc::setsid() };
            if outcome == -1 {
                return Err(io::Error::last_os_error());
            }
        }
        watch_parent(parent, signal)
    };
    // SAFETY: between fork and exec only async-signal-safe things may happen. The closure makes system
    // calls, reads integers that it captured by value, and makes `io::Error`s of OS error codes, which
    // do not allocate.
    unsafe { command.pre_exec(hook) };
}

#[cfg(target_os = "linux")]
#[expect(unsafe_code, reason = "libc declares every foreign function unsafe")]
fn watch_parent(parent: u32, signal: c_int) -> io::Result<()> {
    // SAFETY: PR_SET_PDEATHSIG takes one integer; neither call touches memory of ours.
    let (outcome, now) = unsafe { (libc::prctl(libc::PR_SET_PDEATHSIG, signal), libc::getppid()) };
    if outcome == -1 {
        return Err(io::Error::last_os_error());
    }
    // The parent may have died before the call above, and then no signal will ever come.
    if u32::try_from(now).ok() == Some(parent) {
        Ok(())
    } else {
        Err(io::Error::from_raw_os_error(libc::ESRCH))
    }
}

#[cfg(not(target_os = "linux"))]
#[expect(clippy::unnecessary_wraps, reason = "the Linux twin can fail")]
fn watch_parent(_parent: u32, _signal: c_int) -> io::Result<()> {
    Ok(())
}

/// The last signal that [`catch_signals`] caught and [`caught_signal`] has not yet handed out; negative
/// if the terminal sent it.
static CAUGHT: AtomicI32 = AtomicI32::new(0);

/// A signal that asks this process to end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Signal {
    pub(crate) number: c_int,
    /// Sent by the terminal, so that every process of the foreground group has got it already.
    pub(crate) from_terminal: bool,
}

/// From now on, signals that ask this process to end are noted instead of obeyed.
#[expect(unsafe_code, reason = "libc declares every foreign function unsafe")]
pub(crate) fn catch_signals() -> io::Result<()> {
    for signal in [libc::SIGHUP, libc::SIGINT, libc::SIGQUIT, libc::SIGTERM] {
        // SAFETY: all-zero bytes are a valid `sigaction` (it is integers and an optional pointer); both
        // pointers are valid for the call or null; and the handler has the signature SA_SIGINFO demands.
        let outcome = unsafe {
            let mut action: libc::sigaction = std::mem::zeroed();
            let handler: extern "C" fn(c_int, *mut siginfo_t, *mut c_void) = note_signal;
            action.sa_sigaction = handler as libc::sighandler_t;
            action.sa_flags = libc::SA_SIGINFO | libc::SA_RESTART;
            libc::sigemptyset(&raw mut action.sa_mask);
            libc::sigaction(signal, &raw const action, std::ptr::null_mut())
        };
        if outcome == -1 {
            return Err(io::Error::last_os_error());
        }
    }
    Ok(())
}

/// The signal caught since the last call, if any.
pub(crate) fn caught_signal() -> Option<Signal> {
    match CAUGHT.swap(0, Ordering::SeqCst) {
        0 => None,
        number => Some(Signal { number: number.abs(), from_terminal: number < 0 }),
    }
}

/// Runs as a signal handler: it may do nothing that is not async-signal-safe, and an atomic store is.
extern "C" fn note_signal(number: c_int, info: *mut siginfo_t, _context: *mut c_void) {
    let number = if is_from_terminal(number, info) { -number } else { number };
    CAUGHT.store(number, Ordering::SeqCst);
}

#[cfg(target_os = "linux")]
#[expect(unsafe_code, reason = "the kernel hands us a pointer")]
fn is_from_terminal(_number: c_int, info: *mut siginfo_t) -> bool {
    // SAFETY: with SA_SIGINFO the kernel passes a valid siginfo_t that lives while the handler runs.
    let code = unsafe { info.as_ref() }.map(|info| info.si_code);
    // The kernel itself speaks for the terminal; everything else names a process that sent it.
    code == Some(libc::SI_KERNEL)
}

#[cfg(not(target_os = "linux"))]
fn is_from_terminal(number: c_int, _info: *mut siginfo_t) -> bool {
    number == libc::SIGINT || number == libc::SIGQUIT
}
