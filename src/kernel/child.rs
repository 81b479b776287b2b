//! The process in which cells run. It is linked against the prebuilt library, so its interrupt
//! handler, panic hook and output channel live where the cells' own calls go, and it outlives a
//! rebuilt kernel binary.
//!
//! Cells are loaded one after the other as shared objects and never unloaded. The engine speaks
//! over the standard input and output the process was born with; what user code reads and prints
//! goes over a socket to the kernel, so that neither can be mistaken for the other. Rich output
//! travels within that stream, in order, as records: a record separator (U+001E), `cluescope:`, one
//! line of JSON.

use std::ffi::{CStr, CString, c_char, c_int, c_void};
use std::io::{BufRead, BufReader, Write};
use std::os::fd::{AsRawFd, FromRawFd, IntoRawFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use serde_json::{Map, Value, json};

use crate::notebook::{Bars, Rich, Screen, set_screen};
use crate::progress::{self, Sink, Status};

/// Environment variable with the path of the kernel's socket.
pub const SOCKET_VARIABLE: &str = "CLUESCOPE_KERNEL_SOCKET";
/// Where the system's loader looks for libraries first.
pub const LIBRARY_PATH: &str =
    if cfg!(target_os = "macos") { "DYLD_LIBRARY_PATH" } else { "LD_LIBRARY_PATH" };
/// How many entries at the head of [`LIBRARY_PATH`] are for this process alone.
pub const OWN_LIBRARIES: &str = "CLUESCOPE_KERNEL_LIBRARIES";
/// What opens a record within standard output.
pub const RECORD: &str = "\u{1e}cluescope:";
/// The engine's end mark of a cell.
const COMPLETE: &str = "EVCXR_EXECUTION_COMPLETE";

static CONNECTED: AtomicBool = AtomicBool::new(false);
static PROGRESS: OnceLock<Arc<NotebookProgress>> = OnceLock::new();
static ENGINE: OnceLock<Mutex<std::fs::File>> = OnceLock::new();

/// True inside a cell of this package's own kernel: rich output may use [`display`] and
/// [`update_display`]. False elsewhere, and under other kernels.
pub fn connected() -> bool {
    CONNECTED.load(Ordering::Relaxed)
}

/// Shows `data` (MIME type to content) below the cell; with an `id`, [`update_display`] can replace
/// it later.
pub fn display(data: &Value, id: Option<&str>) {
    record(&json!({ "display": data, "id": id }));
}

/// Replaces what [`display`] showed under `id`.
pub fn update_display(data: &Value, id: &str) {
    record(&json!({ "update": data, "id": id }));
}

/// Clears the cell's output; with `wait`, when the next output arrives.
pub fn clear_output(wait: bool) {
    record(&json!({ "clear": wait }));
}

/// Asks the person at the notebook for a line of text. Empty when nobody can answer.
pub fn input(prompt: &str, password: bool) -> String {
    // An answer to a question that was given up is none to this one.
    while receive(&mut [0; 1024]) > 0 {}
    record(&json!({ "input": prompt, "password": password }));
    let mut line = Vec::new();
    let mut byte = [0];
    loop {
        // Looked at again and again, so that an interrupt is heard while nobody answers.
        let mut answer = libc::pollfd { fd: 0, events: libc::POLLIN, revents: 0 };
        // SAFETY: one valid structure, and its number.
        if unsafe { libc::poll(&mut answer, 1, 100) } <= 0 {
            if progress::check_interrupt().is_err() {
                return String::new();
            }
            continue;
        }
        // Byte by byte, so that nothing behind the line is taken from who reads standard input.
        if receive(&mut byte) <= 0 || byte[0] == b'\n' {
            return String::from_utf8_lossy(&line).trim_end_matches('\r').to_owned();
        }
        line.push(byte[0]);
    }
}

/// Bytes of standard input that have arrived; none, or fewer than none, when there are none or it has ended.
fn receive(buffer: &mut [u8]) -> isize {
    // SAFETY: the buffer and its length. Under the kernel descriptor 0 is a socket; of anything else this is an error.
    unsafe { libc::recv(0, buffer.as_mut_ptr().cast(), buffer.len(), libc::MSG_DONTWAIT) }
}

/// The notebook as the library's rich output sees it.
struct NotebookScreen;

impl Screen for NotebookScreen {
    fn show(&self, rich: &Rich, id: Option<&str>) {
        display(&bundle(rich), id);
    }

    fn update(&self, rich: &Rich, id: &str) {
        update_display(&bundle(rich), id);
    }
}

fn bundle(rich: &Rich) -> Value {
    let forms = rich.forms.iter().map(|(mime, content)| (mime.clone(), Value::from(content.as_str())));
    Value::Object(Map::from_iter(forms))
}

/// Bars, and word to the kernel of whether the library is at work: then an interrupt will be heard,
/// and is given longer.
struct NotebookProgress {
    bars: Bars,
    tasks: Mutex<std::collections::BTreeSet<u64>>,
}

impl Sink for NotebookProgress {
    fn show(&self, status: &Status) {
        let mut tasks = self.tasks.lock().unwrap_or_else(PoisonError::into_inner);
        let idle = tasks.is_empty();
        if status.finished {
            tasks.remove(&status.id)
        } else {
            tasks.insert(status.id)
        };
        if tasks.is_empty() != idle {
            record(&json!({ "working": idle }));
        }
        drop(tasks);
        self.bars.show(status);
    }
}

impl NotebookProgress {
    /// Between cells no task is at work, whatever variables hold: the next that begins is word to the kernel again.
    fn forget(&self) {
        self.tasks.lock().unwrap_or_else(PoisonError::into_inner).clear();
        self.bars.forget();
    }
}

/// Reports an error that a cell returned by `?`; called by the code around every cell.
#[doc(hidden)]
pub fn user_error(name: &str, message: &str) {
    record(&json!({ "error": message, "name": name }));
    engine("EVCXR_ERROR_OCCURRED");
}

/// Writes to the notebook's standard error, after what the cell printed before; called by the macros that stand in the place
/// of the standard ones in cells.
#[doc(hidden)]
pub fn print_error(text: std::fmt::Arguments<'_>) {
    if connected() {
        record(&json!({ "stderr": text.to_string() }));
    } else {
        eprint!("{text}");
    }
}

/// [`std::eprint`] in a cell.
#[doc(hidden)]
#[macro_export]
macro_rules! __cell_eprint {
    ($($part:tt)*) => { $crate::kernel::child::print_error(::std::format_args!($($part)*)) };
}

/// [`std::eprintln`] in a cell.
#[doc(hidden)]
#[macro_export]
macro_rules! __cell_eprintln {
    () => { $crate::__cell_eprint!("\n") };
    ($($part:tt)*) => {
        $crate::kernel::child::print_error(::std::format_args!("{}\n", ::std::format_args!($($part)*)))
    };
}

/// [`std::dbg`] in a cell. It names no line: the file that is compiled has others than the cell.
#[doc(hidden)]
#[macro_export]
macro_rules! __cell_dbg {
    () => { $crate::__cell_eprintln!("[cell]") };
    ($value:expr $(,)?) => {
        match $value {
            value => {
                $crate::__cell_eprintln!("[cell] {} = {:#?}", ::std::stringify!($value), &value);
                value
            }
        }
    };
    ($($value:expr),+ $(,)?) => { ($($crate::__cell_dbg!($value)),+,) };
}

/// Shows a cell's last expression as text; called by the code around every cell.
#[doc(hidden)]
pub fn text_result(type_name: &str, value: &dyn std::fmt::Debug) {
    if type_name == "()" {
        // What was shown last was not the value of this cell.
        record(&json!({ "result": false }));
        return;
    }
    let mut text = Limited(String::new());
    // Failing is how the limit stops a value that would go on.
    let whole = std::fmt::Write::write_fmt(&mut text, format_args!("{value:?}")).is_ok();
    let mut text = text.0;
    if !whole {
        text.push_str(" \u{2026} [the rest of this value is not shown]");
    }
    display(&json!({ "text/plain": text }), None);
}

/// Text up to a length that a notebook can bear; a vector of ten million numbers is one expression too.
struct Limited(String);

impl std::fmt::Write for Limited {
    fn write_str(&mut self, text: &str) -> std::fmt::Result {
        const LIMIT: usize = 256 * 1024;
        let left = LIMIT - self.0.len();
        if text.len() <= left {
            self.0.push_str(text);
            return Ok(());
        }
        self.0.push_str(&text[..text.floor_char_boundary(left)]);
        Err(std::fmt::Error)
    }
}

/// Writes one line to the engine; called by the code around every cell.
#[doc(hidden)]
pub fn engine(line: &str) {
    match ENGINE.get() {
        Some(engine) => {
            let mut engine = engine.lock().unwrap_or_else(PoisonError::into_inner);
            // The engine gone means the kernel is gone; the input ends too and the loop leaves.
            let _ = writeln!(engine, "{line}").and_then(|()| engine.flush());
        }
        None => println!("{line}"),
    }
}

fn record(value: &Value) {
    let mut out = std::io::stdout().lock();
    // A closed pipe while printing is not worth a panic inside a progress bar.
    let _ = writeln!(out, "{RECORD}{value}").and_then(|()| out.flush());
}

/// Serves the engine until its input ends. Never returns.
pub fn run() -> ! {
    // The engine may name this program as its compiler wrapper: then it is only a passage.
    if std::env::var_os("EVCXR_RUSTC_WRAPPER").is_some() {
        std::process::exit(pass_to_compiler());
    }
    match serve() {
        Ok(()) => std::process::exit(0),
        Err(error) => {
            eprintln!("cell process: {error}");
            std::process::exit(99);
        }
    }
}

fn pass_to_compiler() -> i32 {
    let mut arguments = std::env::args_os().skip(1);
    let Some(compiler) = arguments.next() else { return 1 };
    let status = std::process::Command::new(compiler).args(arguments).status();
    status.ok().and_then(|s| s.code()).unwrap_or(1)
}

/// The loader has read its variable; programs that cells start get it as it was.
fn restore_library_path() {
    let Some(own) = std::env::var(OWN_LIBRARIES).ok().and_then(|count| count.parse::<usize>().ok()) else {
        return;
    };
    let path = std::env::var_os(LIBRARY_PATH).unwrap_or_default();
    let rest = path.to_string_lossy().splitn(own + 1, ':').nth(own).unwrap_or_default().to_owned();
    // SAFETY: no other thread runs yet.
    unsafe {
        std::env::remove_var(OWN_LIBRARIES);
        if rest.is_empty() {
            std::env::remove_var(LIBRARY_PATH)
        } else {
            std::env::set_var(LIBRARY_PATH, rest)
        }
    }
}

fn serve() -> std::io::Result<()> {
    restore_library_path();
    let commands = duplicate(0)?;
    let engine_out = duplicate(1)?;
    let _ = ENGINE.set(Mutex::new(engine_out.into()));
    if let Some(path) = std::env::var_os(SOCKET_VARIABLE) {
        for (descriptor, name) in [(0, "stdin"), (1, "stdout"), (2, "stderr")] {
            let mut stream = UnixStream::connect(&path)?;
            writeln!(stream, "{name} {}", std::process::id())?;
            replace(stream.into_raw_fd(), descriptor)?;
        }
        CONNECTED.store(true, Ordering::Relaxed);
        let screen = Arc::new(NotebookScreen);
        set_screen(screen.clone());
        let progress = Arc::new(NotebookProgress { bars: Bars::on(screen), tasks: Mutex::default() });
        progress::set_sink(PROGRESS.get_or_init(|| progress).clone());
    } else {
        let nothing = std::fs::File::open("/dev/null")?;
        replace(nothing.into_raw_fd(), 0)?;
    }
    on_interrupt();
    on_panic();
    go_with_the_kernel();
    for line in BufReader::new(std::fs::File::from(commands)).lines() {
        let line = line?;
        let mut words = line.split(' ');
        match (words.next(), words.next(), words.next()) {
            (Some("LOAD_AND_RUN"), Some(path), Some(function)) => load_and_run(path, function)?,
            _ => return Err(std::io::Error::other(format!("the engine sent `{line}`"))),
        }
    }
    Ok(())
}

/// The address of what the engine stores between cells. Only the main thread touches it.
struct Store(*mut c_void);

fn load_and_run(path: &str, function: &str) -> std::io::Result<()> {
    thread_local! {
        static STORE: std::cell::RefCell<Store> = const { std::cell::RefCell::new(Store(std::ptr::null_mut())) };
    }
    let code = symbol(path, function)?;
    progress::clear_interrupt();
    // A thread of an earlier cell may have reported since.
    forget_tasks();
    let before = STORE.with_borrow(|store| store.0);
    // SAFETY: the engine generated this function with exactly this signature, around the cell,
    // and catches unwinding inside it.
    let after = unsafe {
        std::mem::transmute::<*mut c_void, extern "C" fn(*mut c_void) -> *mut c_void>(code)(before)
    };
    STORE.with_borrow_mut(|store| store.0 = after);
    forget_tasks();
    finish_output(function);
    engine(COMPLETE);
    Ok(())
}

fn forget_tasks() {
    if let Some(progress) = PROGRESS.get() {
        progress.forget();
    }
}

/// Flushes everything a cell wrote and marks the end in both streams, with the name of the cell's
/// function so that no mark is taken for that of another cell.
fn finish_output(function: &str) {
    // SAFETY: flushing all C streams has no preconditions.
    unsafe { libc::fflush(std::ptr::null_mut()) };
    let _ = std::io::stdout().flush();
    if connected() {
        record(&json!({ "done": function }));
        eprintln!("{RECORD}{}", json!({ "done": function }));
    }
}

fn symbol(path: &str, function: &str) -> std::io::Result<*mut c_void> {
    let wrong = |_| std::io::Error::other("a zero byte in a path or name");
    let path = CString::new(path).map_err(wrong)?;
    let function = CString::new(function).map_err(wrong)?;
    // SAFETY: both strings are terminated; the object is never closed, since variables and
    // threads of earlier cells go on using its code.
    unsafe {
        let object = libc::dlopen(path.as_ptr(), libc::RTLD_NOW | libc::RTLD_LOCAL);
        let found = if object.is_null() { object } else { libc::dlsym(object, function.as_ptr()) };
        if found.is_null() {
            let reason: *const c_char = libc::dlerror();
            let reason = if reason.is_null() { c"no such symbol" } else { CStr::from_ptr(reason) };
            return Err(std::io::Error::other(reason.to_string_lossy().into_owned()));
        }
        Ok(found)
    }
}

/// A second descriptor for `descriptor`, not inherited by programs that cells start.
fn duplicate(descriptor: c_int) -> std::io::Result<OwnedFd> {
    // SAFETY: fcntl with a valid command; the new descriptor is owned here alone.
    unsafe {
        let copy = libc::fcntl(descriptor, libc::F_DUPFD_CLOEXEC, 3);
        if copy < 0 { Err(std::io::Error::last_os_error()) } else { Ok(OwnedFd::from_raw_fd(copy)) }
    }
}

fn replace(source: c_int, target: c_int) -> std::io::Result<()> {
    // SAFETY: `source` is a descriptor this process owns; afterwards `target` alone remains.
    unsafe {
        let owned = OwnedFd::from_raw_fd(source);
        if libc::dup2(owned.as_raw_fd(), target) < 0 {
            return Err(std::io::Error::last_os_error());
        }
    }
    Ok(())
}

/// Makes an interrupt stop library work at its next check, and nothing else: variables stay.
fn on_interrupt() {
    extern "C" fn handler(_: c_int) {
        progress::interrupt();
    }
    // SAFETY: the handler only stores to an atomic, which is allowed in a signal handler; the
    // action is fully initialised. System calls restart, so that plain reads and writes go on.
    unsafe {
        let mut action: libc::sigaction = std::mem::zeroed();
        action.sa_sigaction = handler as extern "C" fn(c_int) as usize;
        action.sa_flags = libc::SA_RESTART;
        libc::sigemptyset(&mut action.sa_mask);
        libc::sigaction(libc::SIGINT, &action, std::ptr::null_mut());
        // A group of its own: programs started by cells can be stopped with it, and Ctrl-C in the
        // terminal of the kernel does not reach it directly.
        libc::setpgid(0, 0);
    }
}

/// Ends this process with its kernel, however that ends, even in the middle of a cell; and offers it
/// first when memory runs out, for the kernel survives it and can say what happened.
fn go_with_the_kernel() {
    #[cfg(target_os = "linux")]
    {
        // SAFETY: a system call about this process alone.
        unsafe { libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL) };
        // Where this is not allowed, it stays as it was.
        let _ = std::fs::write("/proc/self/oom_score_adj", "800");
    }
}

/// Panics of the cell become error messages of the notebook; those of other threads a line of text.
fn on_panic() {
    if !connected() {
        return;
    }
    let cell_thread = std::thread::current().id();
    std::panic::set_hook(Box::new(move |info| {
        let message = info.payload_as_str().unwrap_or("a value that is not text");
        let place = info.location().map(|l| l.to_string()).unwrap_or_default();
        if std::thread::current().id() == cell_thread {
            record(&json!({ "panic": message, "place": place }));
        } else {
            let name = std::thread::current().name().unwrap_or("unnamed").to_owned();
            eprintln!("thread `{name}` panicked at {place}: {message}");
        }
    }));
}
