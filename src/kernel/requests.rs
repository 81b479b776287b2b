//! Reads what clients send. The protocol gives many fields of a request a default, the crate that knows its messages
//! demands them; a request without such a field would be dropped, and its client wait for ever.

use jupyter_protocol::{JupyterMessage, JupyterMessageContent};
use jupyter_zmq_client as zmq;
use serde_json::{Value, json};
use zeromq::SocketRecv;

/// The next message of `connection`. Errors are messages that are none: unsigned, wrongly signed, cut short, not JSON.
pub(super) async fn read<S: SocketRecv>(connection: &mut zmq::Connection<S>) -> zmq::Result<JupyterMessage> {
    let raw = zmq::RawMessage::from_multipart(connection.socket.recv().await?, &connection.mac)?;
    let [header, parent, metadata, content, buffers @ ..] = raw.jparts.as_slice() else {
        return Err(zmq::RuntimeError::InsufficientMessageParts(raw.jparts.len()));
    };
    let header: jupyter_protocol::Header = serde_json::from_slice(header)?;
    let content = with_defaults(&header.msg_type, serde_json::from_slice(content)?);
    let content = JupyterMessageContent::from_type_and_content(&header.msg_type, content)?;
    Ok(JupyterMessage {
        zmq_identities: raw.zmq_identities.clone(),
        // An empty object stands for no parent, and so does anything else that is none.
        parent_header: serde_json::from_slice(parent).ok(),
        metadata: serde_json::from_slice(metadata)?,
        content,
        buffers: buffers.to_vec(),
        channel: None,
        header,
    })
}

/// `content` with the defaults of the messaging specification, version 5.4, for what it leaves out.
fn with_defaults(msg_type: &str, content: Value) -> Value {
    let defaults = match msg_type {
        "execute_request" => json!({
            "silent": false, "store_history": true, "user_expressions": {}, "allow_stdin": true, "stop_on_error": true
        }),
        "inspect_request" => json!({ "detail_level": 0 }),
        "history_request" => json!({
            "output": false, "raw": true, "session": 0, "start": 0, "stop": 0, "n": i32::MAX, "unique": false
        }),
        "shutdown_request" => json!({ "restart": false }),
        _ => return content,
    };
    match (defaults, content) {
        (Value::Object(mut all), Value::Object(given)) => {
            // `null` is what some clients write for nothing.
            all.extend(given.into_iter().filter(|(_, value)| !value.is_null()));
            Value::Object(all)
        }
        (_, content) => content,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use jupyter_protocol::HistoryRequest;

    fn read(msg_type: &str, content: Value) -> JupyterMessageContent {
        JupyterMessageContent::from_type_and_content(msg_type, with_defaults(msg_type, content)).unwrap()
    }

    #[test]
    fn what_a_client_leaves_out_gets_its_default() {
        let search = json!({ "hist_access_type": "search", "output": true, "raw": true, "pattern": "1?2*" });
        let JupyterMessageContent::HistoryRequest(HistoryRequest::Search { n, unique, output, .. }) =
            read("history_request", search)
        else {
            panic!("not a search")
        };
        assert_eq!((n, unique, output), (i32::MAX, false, true));
        let JupyterMessageContent::ExecuteRequest(execute) = read("execute_request", json!({ "code": "1" }))
        else {
            panic!("no cell")
        };
        assert!(execute.store_history && execute.stop_on_error && execute.allow_stdin && !execute.silent);
        let null = json!({ "code": "1", "silent": true, "stop_on_error": null });
        let JupyterMessageContent::ExecuteRequest(execute) = read("execute_request", null) else {
            panic!("no cell")
        };
        assert!(execute.silent && execute.stop_on_error);
        for (kind, content) in
            [("inspect_request", json!({ "code": "x", "cursor_pos": 0 })), ("shutdown_request", json!({}))]
        {
            read(kind, content);
        }
    }
}
