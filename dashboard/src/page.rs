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
    file_of(FILES, path)
}

fn file_of(files: &'static [(&str, &[u8])], path: &str) -> Response {
    let wanted = if path == "/" { "/index.html" } else { path };
    let Some((name, bytes)) = files.iter().find(|(name, _)| *name == wanted) else {
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

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test may panic")]
mod tests {
    use http_body_util::BodyExt as _;

    use super::*;

    #[tokio::test]
    async fn a_binary_without_the_page_says_how_to_get_it() {
        let response = file_of(&[], "/");
        assert_eq!(response.status(), StatusCode::OK);
        let kind = response.headers()[header::CONTENT_TYPE].to_str().unwrap();
        assert_eq!(kind, "text/html; charset=utf-8");
        let bytes = response.into_body().collect().await.unwrap().to_bytes();
        let said = String::from_utf8(bytes.to_vec()).unwrap();
        assert!(
            said.contains("./run page") && said.contains("weavectl flows"),
            "{said}"
        );
        assert_eq!(file_of(&[], "/assets/x.js").status(), StatusCode::NOT_FOUND);
    }

    #[test]
    fn files_are_sent_as_what_they_are() {
        let files: &[(&str, &[u8])] = &[("/index.html", b"page"), ("/assets/a1.js", b"code")];
        for (path, kind, cache) in [
            ("/", "text/html; charset=utf-8", "no-cache"),
            (
                "/assets/a1.js",
                "text/javascript; charset=utf-8",
                "public, max-age=31536000, immutable",
            ),
        ] {
            let response = file_of(files, path);
            assert_eq!(response.headers()[header::CONTENT_TYPE], kind);
            assert_eq!(response.headers()[header::CACHE_CONTROL], cache);
            assert_eq!(response.headers()[header::CONTENT_ENCODING], "gzip");
        }
    }
}
