//! As much of HTTP/1.1 as the control socket needs: bytes to messages and
//! back, without I/O. Parsing is total over arbitrary bytes, and every length
//! is bounded before anything of that length is kept.

/// The longest request or response head.
pub(super) const MAX_HEAD_BYTES: usize = 16 << 10;
/// The longest request body: a volume's description is a few hundred bytes.
pub(super) const MAX_REQUEST_BODY_BYTES: usize = 64 << 10;
/// The longest response body the client accepts: some hundred thousand volumes.
pub(super) const MAX_RESPONSE_BODY_BYTES: usize = 64 << 20;

const MAX_HEADERS: usize = 64;

/// A request, whole.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Request {
    pub(super) method: String,
    /// The path without the query.
    pub(super) path: String,
    pub(super) body: Vec<u8>,
}

/// A response, whole.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Response {
    pub(super) status: u16,
    /// Methods for an `Allow` header.
    pub(super) allow: Option<&'static str>,
    /// JSON, or empty.
    pub(super) body: Vec<u8>,
}

/// What the bytes so far amount to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Parsed<T> {
    /// Not all there yet.
    Partial,
    /// The whole message.
    Complete(T),
}

/// Bytes that are no acceptable message.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Malformed {
    /// The status to answer with.
    pub(super) status: u16,
    /// One sentence.
    pub(super) message: &'static str,
}

const fn malformed(status: u16, message: &'static str) -> Malformed {
    Malformed { status, message }
}

/// Reads a request from the start of `bytes`.
pub(super) fn parse_request(bytes: &[u8]) -> Result<Parsed<Request>, Malformed> {
    let mut headers = [httparse::EMPTY_HEADER; MAX_HEADERS];
    let mut head = httparse::Request::new(&mut headers);
    let head_bytes = match head.parse(bytes) {
        Ok(httparse::Status::Complete(length)) => length,
        Ok(httparse::Status::Partial) if bytes.len() < MAX_HEAD_BYTES => {
            return Ok(Parsed::Partial);
        }
        Ok(httparse::Status::Partial) | Err(httparse::Error::TooManyHeaders) => {
            return Err(malformed(431, "The request's headers are too long"));
        }
        Err(_) => return Err(malformed(400, "This is not an HTTP/1.1 request")),
    };
    let (Some(method), Some(target)) = (head.method, head.path) else {
        return Err(malformed(400, "This is not an HTTP/1.1 request"));
    };
    let body_bytes = body_length(head.headers, MAX_REQUEST_BODY_BYTES)?.unwrap_or(0);
    let Some(body) = bytes.get(head_bytes..head_bytes + body_bytes) else {
        return Ok(Parsed::Partial);
    };
    let path = target.split_once('?').map_or(target, |(path, _)| path);
    Ok(Parsed::Complete(Request {
        method: method.to_owned(),
        path: path.to_owned(),
        body: body.to_owned(),
    }))
}

/// Reads a response from the start of `bytes`; the server always says how
/// long its body is.
pub(super) fn parse_response(bytes: &[u8]) -> Result<Parsed<Response>, Malformed> {
    const NO_HTTP: Malformed = malformed(
        502,
        "What answers at the control socket is no Tessera server",
    );
    let mut headers = [httparse::EMPTY_HEADER; MAX_HEADERS];
    let mut head = httparse::Response::new(&mut headers);
    let head_bytes = match head.parse(bytes) {
        Ok(httparse::Status::Complete(length)) => length,
        Ok(httparse::Status::Partial) if bytes.len() < MAX_HEAD_BYTES => {
            return Ok(Parsed::Partial);
        }
        _ => return Err(NO_HTTP),
    };
    let status = head.code.ok_or(NO_HTTP)?;
    let body_bytes = body_length(head.headers, MAX_RESPONSE_BODY_BYTES)
        .ok()
        .flatten()
        .ok_or(NO_HTTP)?;
    match bytes.get(head_bytes..head_bytes + body_bytes) {
        Some(body) => Ok(Parsed::Complete(Response {
            status,
            allow: None,
            body: body.to_owned(),
        })),
        None => Ok(Parsed::Partial),
    }
}

fn body_length(headers: &[httparse::Header<'_>], most: usize) -> Result<Option<usize>, Malformed> {
    let mut length = None;
    for header in headers {
        if header.name.eq_ignore_ascii_case("transfer-encoding") {
            return Err(malformed(
                411,
                "The request must say its length in Content-Length",
            ));
        }
        if header.name.eq_ignore_ascii_case("content-length") {
            // Two lengths that disagree would let two readers see two messages.
            let value = std::str::from_utf8(header.value).ok().map(str::trim);
            let digits = value.filter(|v| !v.is_empty() && v.bytes().all(|b| b.is_ascii_digit()));
            let digits =
                digits.ok_or(malformed(400, "The request's Content-Length is no number"))?;
            if length.is_some() {
                return Err(malformed(400, "The request says its length twice"));
            }
            // All digits: what does not parse is too large.
            let bytes = digits.parse::<usize>().unwrap_or(usize::MAX);
            if bytes > most {
                return Err(malformed(413, "The request's body is too long"));
            }
            length = Some(bytes);
        }
    }
    Ok(length)
}

/// Writes a request.
pub(super) fn encode_request(request: &Request) -> Vec<u8> {
    let mut bytes = format!(
        "{} {} HTTP/1.1\r\nHost: tessera\r\nConnection: close\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n",
        request.method,
        request.path,
        request.body.len()
    )
    .into_bytes();
    bytes.extend_from_slice(&request.body);
    bytes
}

/// Writes a response after which the connection closes.
pub(super) fn encode_response(response: &Response) -> Vec<u8> {
    let mut head = format!(
        "HTTP/1.1 {} {}\r\nConnection: close\r\nContent-Type: application/json\r\nContent-Length: {}\r\n",
        response.status,
        reason(response.status),
        response.body.len()
    );
    if let Some(methods) = response.allow {
        head.push_str(&format!("Allow: {methods}\r\n"));
    }
    head.push_str("\r\n");
    let mut bytes = head.into_bytes();
    bytes.extend_from_slice(&response.body);
    bytes
}

const fn reason(status: u16) -> &'static str {
    match status {
        200 => "OK",
        201 => "Created",
        400 => "Bad Request",
        403 => "Forbidden",
        404 => "Not Found",
        405 => "Method Not Allowed",
        408 => "Request Timeout",
        409 => "Conflict",
        411 => "Length Required",
        413 => "Content Too Large",
        431 => "Request Header Fields Too Large",
        500 => "Internal Server Error",
        503 => "Service Unavailable",
        507 => "Insufficient Storage",
        _ => "Unknown",
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn status_of(bytes: &[u8]) -> u16 {
        parse_request(bytes)
            .expect_err("it should be refused")
            .status
    }

    #[test]
    fn a_request_arrives_whole_or_not_at_all() {
        let request = Request {
            method: "POST".into(),
            path: "/v1/volumes".into(),
            body: b"{\"name\":\"a\"}".to_vec(),
        };
        let bytes = encode_request(&request);
        for end in 0..bytes.len() {
            assert_eq!(parse_request(&bytes[..end]), Ok(Parsed::Partial), "{end}");
        }
        assert_eq!(parse_request(&bytes), Ok(Parsed::Complete(request)));
    }

    #[test]
    fn a_response_arrives_whole_or_not_at_all() {
        let response = Response {
            status: 201,
            allow: None,
            body: b"[]".to_vec(),
        };
        let bytes = encode_response(&response);
        for end in 0..bytes.len() {
            assert_eq!(parse_response(&bytes[..end]), Ok(Parsed::Partial), "{end}");
        }
        assert_eq!(parse_response(&bytes), Ok(Parsed::Complete(response)));
    }

    #[test]
    fn the_query_is_no_part_of_the_path() {
        let Ok(Parsed::Complete(request)) = parse_request(b"GET /v1/status?x=1 HTTP/1.1\r\n\r\n")
        else {
            panic!("a plain request is complete");
        };
        assert_eq!(request.path, "/v1/status");
    }

    #[test]
    fn oversized_and_ambiguous_requests_are_refused() {
        assert_eq!(status_of(b"\x16\x03\x01\x02\x00"), 400);
        assert_eq!(
            status_of(b"GET / HTTP/1.1\r\nContent-Length: 65537\r\n\r\n"),
            413
        );
        assert_eq!(
            status_of(b"GET / HTTP/1.1\r\nContent-Length: 99999999999999999999999\r\n\r\n"),
            413
        );
        assert_eq!(
            status_of(b"GET / HTTP/1.1\r\nContent-Length: -1\r\n\r\n"),
            400
        );
        assert_eq!(
            status_of(b"GET / HTTP/1.1\r\nContent-Length: +1\r\n\r\n"),
            400
        );
        assert_eq!(
            status_of(b"GET / HTTP/1.1\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n"),
            400
        );
        assert_eq!(
            status_of(b"GET / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n"),
            411
        );
        let long = [b"GET /".as_slice(), &[b'a'; MAX_HEAD_BYTES]].concat();
        assert_eq!(status_of(&long), 431);
        let many = [
            b"GET / HTTP/1.1\r\n".to_vec(),
            b"A: b\r\n".repeat(MAX_HEADERS + 1),
        ]
        .concat();
        assert_eq!(status_of(&many), 431);
    }

    proptest! {
        #[test]
        fn parsing_is_total(bytes: Vec<u8>, cut in 0usize..200) {
            let _ = parse_request(&bytes);
            let _ = parse_response(&bytes);
            let mut damaged = encode_request(&Request {
                method: "PATCH".into(),
                path: "/v1/volumes/x".into(),
                body: b"{}".to_vec(),
            });
            damaged.truncate(cut);
            damaged.extend_from_slice(&bytes);
            let _ = parse_request(&damaged);
        }
    }
}
