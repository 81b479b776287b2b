//! Work spread over several devices: a thread for each, which takes the next piece as soon as it is free.
//!
//! What comes out does not depend on how many there are: pieces are cut one after another and their results handed on in the same
//! order, whichever device had them.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{self, Receiver};
use std::sync::{Arc, Mutex, PoisonError};

use crate::error::{Error, Result};
use crate::progress::check_interrupt;

thread_local! {
    static WORKER: RefCell<Option<Worker>> = const { RefCell::new(None) };
}

/// What a thread knows of the work that it has a share in.
struct Worker {
    device: String,
    stop: Arc<AtomicBool>,
}

/// The device that this thread works for, where several share the work.
pub(crate) fn device() -> Option<String> {
    WORKER.with_borrow(|worker| worker.as_ref().map(|worker| worker.device.clone()))
}

/// Whether another device failed, so that what this thread does is in vain.
pub(crate) fn is_stopped() -> bool {
    WORKER.with_borrow(|worker| worker.as_ref().is_some_and(|worker| worker.stop.load(Ordering::Relaxed)))
}

/// Stops the others when the thread that holds it panics.
struct StopOnPanic(Arc<AtomicBool>);

impl Drop for StopOnPanic {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.0.store(true, Ordering::Relaxed);
        }
    }
}

/// Gives the pieces that `next` cuts to `devices`, one each at a time, lets `work` be done on them and hands the results to
/// `each`, in the order of the pieces and on the calling thread. A device that is alone works on the calling thread too.
///
/// # Errors
/// The first error; that of a device among several is [`Error::Device`]. The others then stop at their next check, and what was
/// finished up to the first missing piece is handed on, as after an interrupt.
pub(crate) fn spread<D: Send, P: Send, R: Send>(
    mut devices: Vec<(String, D)>,
    mut next: impl FnMut() -> Result<Option<P>> + Send,
    work: impl Fn(&mut D, P) -> Result<R> + Sync,
    mut each: impl FnMut(R) -> Result<()>,
) -> Result<()> {
    if let [(_, alone)] = &mut devices[..] {
        while let Some(piece) = next()? {
            each(work(alone, piece)?)?;
        }
        return Ok(());
    }
    let stop = Arc::new(AtomicBool::new(false));
    let mut count = 0;
    // Cut and counted under one lock.
    let take = Mutex::new(|| -> Result<Option<(usize, P)>> {
        check_interrupt()?;
        let piece = next()?;
        count += 1;
        Ok(piece.map(|piece| (count - 1, piece)))
    });
    let (sender, results) = mpsc::channel();
    std::thread::scope(|scope| {
        for (name, mut device) in devices {
            let (stop, sender, take, work) = (stop.clone(), sender.clone(), &take, &work);
            scope.spawn(move || {
                let _guard = StopOnPanic(stop.clone());
                WORKER.set(Some(Worker { device: name.clone(), stop: stop.clone() }));
                loop {
                    let taken = (take.lock().unwrap_or_else(PoisonError::into_inner))();
                    let done = match taken {
                        Ok(None) => return,
                        Ok(Some((number, piece))) => work(&mut device, piece)
                            .map(|result| (number, result))
                            .map_err(|error| error.on(&name)),
                        Err(error) => Err(error),
                    };
                    let failed = done.is_err();
                    if failed {
                        stop.store(true, Ordering::Relaxed);
                    }
                    // Nobody listens only where the calling thread panicked.
                    if sender.send(done).is_err() || failed {
                        return;
                    }
                }
            });
        }
        drop(sender);
        hand_on(results, &stop, &mut each)
    })
}

/// Hands results on in their order as they come in, and returns the error that began it: what stops the others looks like an
/// interrupt to them.
fn hand_on<R>(
    results: Receiver<Result<(usize, R)>>,
    stop: &AtomicBool,
    each: &mut dyn FnMut(R) -> Result<()>,
) -> Result<()> {
    let mut failure: Option<Error> = None;
    let mut note = |error| {
        stop.store(true, Ordering::Relaxed);
        if matches!(failure, None | Some(Error::Interrupted)) {
            failure = Some(error);
        }
    };
    let (mut early, mut due, mut broken) = (BTreeMap::new(), 0, false);
    for done in results {
        match done {
            Ok((number, result)) => {
                early.insert(number, result);
            }
            Err(error) => note(error),
        }
        while let Some(result) = early.remove(&due) {
            due += 1;
            match if broken { Ok(()) } else { each(result) } {
                Ok(()) => {}
                // An interrupt must not cost what is computed already.
                Err(Error::Interrupted) => note(Error::Interrupted),
                Err(error) => {
                    note(error);
                    broken = true;
                }
            }
        }
    }
    failure.map_or(Ok(()), Err)
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, Instant};

    use super::*;

    fn devices(count: usize) -> Vec<(String, usize)> {
        (0..count).map(|number| (format!("card:{number}"), number)).collect()
    }

    /// The numbers 0 to `end`.
    fn numbers(end: usize) -> impl FnMut() -> Result<Option<usize>> + Send {
        let mut numbers = 0..end;
        move || Ok(numbers.next())
    }

    /// Waits as long work does, with a check now and then.
    fn long() -> Result<()> {
        let start = Instant::now();
        while start.elapsed() < Duration::from_secs(60) {
            check_interrupt()?;
            std::thread::sleep(Duration::from_millis(1));
        }
        panic!("nobody stopped this")
    }

    #[test]
    fn results_come_in_order_and_every_device_has_a_share() {
        for count in 1..4 {
            let shares = Mutex::new(vec![0; count]);
            let mut got = Vec::new();
            let work = |device: &mut usize, piece: usize| {
                shares.lock().unwrap()[*device] += 1;
                // The earlier of neighbours takes longer.
                std::thread::sleep(Duration::from_millis(if piece.is_multiple_of(2) { 9 } else { 3 }));
                assert_eq!(super::device(), (count > 1).then(|| format!("card:{device}")));
                Ok(piece * 10)
            };
            let caller = std::thread::current().id();
            spread(devices(count), numbers(20), work, |result| {
                assert_eq!(std::thread::current().id(), caller);
                got.push(result);
                Ok(())
            })
            .unwrap();
            assert_eq!(got, (0..20).map(|n| n * 10).collect::<Vec<_>>());
            let shares = shares.into_inner().unwrap();
            assert!(
                shares.iter().all(|share| *share > 0) && shares.iter().sum::<usize>() == 20,
                "{shares:?}"
            );
        }
    }

    #[test]
    fn one_device_that_fails_is_named_and_stops_the_others() {
        let mut got = Vec::new();
        let work = |_: &mut usize, piece: usize| match piece {
            0 | 1 => Ok(piece),
            2 => {
                std::thread::sleep(Duration::from_millis(30));
                Err(Error::Stopped("out of memory".into()))
            }
            _ => long().map(|()| piece),
        };
        let message = spread(devices(3), numbers(50), work, |piece| {
            got.push(piece);
            Ok(())
        })
        .unwrap_err();
        let Error::Device { device, .. } = &message else { panic!("{message}") };
        assert_eq!(message.to_string(), format!("{device}: out of memory"));
        assert!(device.starts_with("card:"));
        assert_eq!(got, [0, 1], "what was finished before is handed on");
        // Alone it needs no name.
        let fail = |_: &mut usize, _: usize| Err::<(), _>(Error::Stopped("out of memory".into()));
        let message = spread(devices(1), numbers(1), fail, |()| Ok(())).unwrap_err();
        assert_eq!(message.to_string(), "out of memory");
    }

    #[test]
    fn whoever_receives_the_results_can_stop_all() {
        let work = |_: &mut usize, piece: usize| if piece == 0 { Ok(()) } else { long() };
        let full = |()| Err(Error::Stopped("disk full".into()));
        let message = spread(devices(2), numbers(50), work, full).unwrap_err();
        assert_eq!(message.to_string(), "disk full", "no device is to blame");
    }

    #[test]
    fn an_interrupt_is_one_and_hands_on_what_is_finished() {
        let mut got = Vec::new();
        let work = |_: &mut usize, piece: usize| match piece {
            0..4 => Ok(piece),
            4 => Err(Error::Interrupted),
            _ => long().map(|()| piece),
        };
        let each = |piece| {
            got.push(piece);
            Ok(())
        };
        let error = spread(devices(3), numbers(50), work, each).unwrap_err();
        assert!(matches!(error, Error::Interrupted), "{error}");
        assert_eq!(got, [0, 1, 2, 3]);
    }

    #[test]
    fn a_panic_stops_the_others() {
        let work = |_: &mut usize, piece: usize| if piece == 0 { panic!("a mistake") } else { long() };
        let run = || spread(devices(2), numbers(50), work, |()| Ok(()));
        assert!(std::panic::catch_unwind(std::panic::AssertUnwindSafe(run)).is_err());
    }
}
