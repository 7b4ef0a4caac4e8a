//! The files of the page, compressed when it was built and sent as they are; and what is shown when it was not built.

use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};

/// Path and content (gzip) of each file.
const FILES: &[(&str, &[u8])] = include!(concat!(env!("OUT_DIR"), "/page.rs"));

/// What a binary without the page says.
const NOT_BUILT: &str = "<!doctype html><html lang=\"en\"><meta charset=\"utf-8\"><title>Weave</title>\
<h1>The page is not in this binary</h1>\
<p>It was built without Node. Build it with <code>./run page</code>, then build <code>weaved</code> again.</p>\
<p>The data is there: <code>weavectl flows</code>, <code>weavectl top</code>, <code>/v1/topology</code> on the node's socket.</p>\
</html>";

/// A file of the page; the page itself for `/`.
pub(crate) fn file(path: &str) -> Response {
    let wanted = if path == "/" { "/index.html" } else { path };
    let Some((name, bytes)) = FILES.iter().find(|(name, _)| *name == wanted) else {
        if wanted == "/index.html" {
            let html = [(header::CONTENT_TYPE, "text/html; charset=utf-8")];
            return (html, NOT_BUILT).into_response();
        }
        return (StatusCode::NOT_FOUND, "there is no such file\n").into_response();
    };
    // Names of assets carry a hash of what is in them; the page itself is asked for anew.
    let cache = if name.starts_with("/assets/") {
        "public, max-age=31536000, immutable"
    } else {
        "no-cache"
    };
    let mut response = (*bytes).into_response();
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(kind(name)));
    headers.insert(header::CONTENT_ENCODING, HeaderValue::from_static("gzip"));
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static(cache));
    response
}

fn kind(name: &str) -> &'static str {
    match name.rsplit('.').next() {
        Some("html") => "text/html; charset=utf-8",
        Some("js") => "text/javascript; charset=utf-8",
        Some("css") => "text/css; charset=utf-8",
        Some("svg") => "image/svg+xml",
        _ => "application/octet-stream",
    }
}
