//! The channel to everyone who listens, with a bound on what waits for a listener that does not read. Its socket counts
//! waiting messages, a hundred thousand of them, whatever their size: pictures of a curve drawn twice a second would fill the
//! memory before it drops one.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use std::time::Duration;

use bytes::Bytes;
use jupyter_protocol::{IoPubWelcome, JupyterMessage, JupyterMessageContent, Media, MediaType};
use jupyter_zmq_client as zmq;
use tokio::sync::mpsc;
use zeromq::{PubSocket, Socket, SocketEvent, SocketSend, ZmqMessage, ZmqResult};

/// Bytes that may wait for listeners; beyond, displays are replaced by a note.
const WAITING: usize = 64 << 20;
/// From a listener's connection to its welcome, and to another one, should its subscription have taken longer on a busy machine:
/// it follows the connection at once. A socket that tells of subscriptions would wait for whoever does not read.
const SETTLED: [Duration; 2] = [Duration::from_millis(100), Duration::from_secs(2)];

/// Sends what the channel is given, and welcomes listeners: who hears the welcome knows that nothing later will be missed.
pub(super) fn open(mut connection: zmq::KernelIoPubConnection) -> mpsc::Sender<JupyterMessage> {
    let (send, mut receive) = mpsc::channel::<JupyterMessage>(64);
    let mut events = connection.socket.monitor();
    let welcomes = send.clone();
    tokio::spawn(async move {
        while let Ok(event) = events.recv().await {
            if matches!(event, SocketEvent::Accepted(..)) {
                let welcomes = welcomes.clone();
                tokio::spawn(async move {
                    for pause in SETTLED {
                        tokio::time::sleep(pause).await;
                        let welcome = IoPubWelcome::new(String::new());
                        let _ = welcomes.send(JupyterMessage::new(welcome, None)).await;
                    }
                });
            }
        }
    });
    tokio::spawn(async move {
        let mut public = Public::new(connection);
        while let Some(message) = receive.recv().await {
            // A listener that went away is no reason to stop.
            let _ = public.send(message).await;
        }
    });
    send
}

/// The public channel.
struct Public {
    connection: zmq::Connection<Counting>,
    waiting: Arc<AtomicUsize>,
}

impl Public {
    fn new(connection: zmq::KernelIoPubConnection) -> Self {
        let waiting = Arc::new(AtomicUsize::new(0));
        let socket = Counting { socket: connection.socket, waiting: waiting.clone() };
        let (mac, session_id) = (connection.mac, connection.session_id);
        Public { connection: zmq::Connection { socket, mac, session_id }, waiting }
    }

    /// Sends `message`, or a note in the place of its picture when listeners are too far behind.
    async fn send(&mut self, mut message: JupyterMessage) -> zmq::Result<()> {
        if self.waiting.load(Ordering::Relaxed) > WAITING {
            spare(&mut message.content);
        }
        self.connection.send(message).await
    }
}

/// Takes the content out of a display. Text is bounded already, and all else is small.
fn spare(content: &mut JupyterMessageContent) {
    let data = match content {
        JupyterMessageContent::DisplayData(display) => &mut display.data,
        JupyterMessageContent::UpdateDisplayData(update) => &mut update.data,
        JupyterMessageContent::ExecuteResult(result) => &mut result.data,
        _ => return,
    };
    let note = format!("[not shown: a front end has left more than {} MiB unread]", WAITING >> 20);
    *data = Media::new(vec![MediaType::Plain(note)]);
}

/// A socket that knows how many bytes it was given and has not let go of.
struct Counting {
    socket: PubSocket,
    waiting: Arc<AtomicUsize>,
}

impl SocketSend for Counting {
    fn send<'a, 'b>(
        &'a mut self,
        message: ZmqMessage,
    ) -> Pin<Box<dyn Future<Output = ZmqResult<()>> + Send + 'b>>
    where
        'a: 'b,
        Self: 'b,
    {
        let frames = message.into_vec().into_iter();
        let frames: Vec<Bytes> = frames.map(|frame| counted(frame, &self.waiting)).collect();
        Box::pin(async move {
            match ZmqMessage::try_from(frames) {
                Ok(message) => self.socket.send(message).await,
                // Only a message of no frames is refused, and that says nothing.
                Err(_) => Ok(()),
            }
        })
    }
}

/// The same bytes, counted in `waiting` until the last copy is let go of.
fn counted(bytes: Bytes, waiting: &Arc<AtomicUsize>) -> Bytes {
    struct Counted(Bytes, Arc<AtomicUsize>);
    impl AsRef<[u8]> for Counted {
        fn as_ref(&self) -> &[u8] {
            &self.0
        }
    }
    impl Drop for Counted {
        fn drop(&mut self) {
            self.1.fetch_sub(self.0.len(), Ordering::Relaxed);
        }
    }
    waiting.fetch_add(bytes.len(), Ordering::Relaxed);
    Bytes::from_owner(Counted(bytes, waiting.clone()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use jupyter_protocol::{DisplayData, Status, StreamContent};

    #[test]
    fn bytes_wait_until_their_last_copy_goes() {
        let waiting = Arc::new(AtomicUsize::new(0));
        let first = counted(Bytes::from(vec![1; 1000]), &waiting);
        let (copy, second) = (first.clone(), counted(Bytes::from_static(b"abc"), &waiting));
        assert_eq!((&copy[..3], &second[..]), (&[1, 1, 1][..], &b"abc"[..]));
        drop(first);
        assert_eq!(waiting.load(Ordering::Relaxed), 1003);
        drop((copy, second));
        assert_eq!(waiting.load(Ordering::Relaxed), 0);
    }

    #[test]
    fn only_displays_are_spared() {
        let mut display = DisplayData::new(Media::new(vec![MediaType::Html("x".repeat(100))])).into();
        spare(&mut display);
        let text = serde_json::to_value(&display).unwrap();
        assert!(text["data"]["text/plain"].as_str().unwrap().contains("unread"), "{text}");
        assert!(text["data"]["text/html"].is_null());
        for content in [Status::idle().into(), JupyterMessageContent::from(StreamContent::stdout("a"))] {
            let mut same = content;
            let before = serde_json::to_value(&same).unwrap();
            spare(&mut same);
            assert_eq!(serde_json::to_value(&same).unwrap(), before);
        }
    }
}
