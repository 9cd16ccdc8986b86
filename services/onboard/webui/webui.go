// Package webui is the page at / of the onboarding service: plain HTML, CSS
// and JavaScript, embedded, which calls nothing but the Onboard service on its
// own origin. Handler serves it; the service itself stands elsewhere.
package webui

import (
	"bytes"
	"crypto/sha256"
	"embed"
	"encoding/hex"
	"html/template"
	"net/http"
	"path"
	"time"
)

//go:embed index.html assets
var files embed.FS

// ContentSecurityPolicy is the policy of every answer of Handler. Nothing is
// loaded from or sent to another origin, nothing inline runs, and no string
// becomes markup or script.
const ContentSecurityPolicy = "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; " +
	"img-src 'self' data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'; " +
	"require-trusted-types-for 'script'"

// Config says what the page shows before it has asked the service anything.
type Config struct {
	// Version of the program, printed at the foot of the page. Optional; the
	// zero value prints none.
	Version string
	// SetupTokenRequired shows the field for the setup token from the start.
	// Optional: when false the page learns it from GetAttestationInfo, or from
	// the first refusal.
	SetupTokenRequired bool
}

// file is one resource of the page, ready to be sent.
type file struct {
	contentType string
	etag        string
	body        []byte
}

// Handler serves the page at / and its files below /assets/, to GET and HEAD.
// Any other path is 404 in plain text, any other method 405. It holds no state
// and may be called concurrently; mount it at "/", the more special patterns
// of the API win over it.
func Handler(c Config) http.Handler {
	site := load(c)
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		setHeaders(w.Header())
		f, ok := site[r.URL.Path]
		if !ok {
			http.Error(w, "not found", http.StatusNotFound)
			return
		}
		if r.Method != http.MethodGet && r.Method != http.MethodHead {
			w.Header().Set("Allow", "GET, HEAD")
			http.Error(w, "method not allowed", http.StatusMethodNotAllowed)
			return
		}
		w.Header().Set("Content-Type", f.contentType)
		w.Header().Set("ETag", f.etag)
		http.ServeContent(w, r, "", time.Time{}, bytes.NewReader(f.body))
	})
}

// load renders the page and reads its files, by URL path. The files are part
// of the program, so whatever fails here is a fault of the build.
func load(c Config) map[string]file {
	var page bytes.Buffer
	t := template.Must(template.ParseFS(files, "index.html"))
	if err := t.Execute(&page, c); err != nil {
		panic("webui: rendering the embedded page: " + err.Error())
	}
	site := map[string]file{"/": newFile("index.html", page.Bytes())}

	entries, err := files.ReadDir("assets")
	if err != nil {
		panic("webui: listing the embedded assets: " + err.Error())
	}
	for _, e := range entries {
		name := path.Join("assets", e.Name())
		body, err := files.ReadFile(name)
		if err != nil {
			panic("webui: reading an embedded asset: " + err.Error())
		}
		site["/"+name] = newFile(name, body)
	}
	return site
}

func newFile(name string, body []byte) file {
	sum := sha256.Sum256(body)
	return file{
		contentType: contentType(name),
		etag:        `"` + hex.EncodeToString(sum[:16]) + `"`,
		body:        body,
	}
}

// contentType does not ask the machine's mime tables first: a wrong entry
// there, together with nosniff, would leave a blank page.
func contentType(name string) string {
	switch path.Ext(name) {
	case ".html":
		return "text/html; charset=utf-8"
	case ".js":
		return "text/javascript; charset=utf-8"
	case ".css":
		return "text/css; charset=utf-8"
	case ".svg":
		return "image/svg+xml"
	default:
		return "application/octet-stream"
	}
}

// setHeaders goes on every answer, refusals included.
//
// Referrer-Policy must not be no-referrer: browsers then send "Origin: null"
// with the page's own POSTs, which the service takes for a foreign origin.
// Cross-Origin-Opener-Policy is left out: browsers ignore it on plain HTTP, with
// an error in the console, and nothing here opens or listens to a window.
func setHeaders(h http.Header) {
	h.Set("Content-Security-Policy", ContentSecurityPolicy)
	h.Set("X-Content-Type-Options", "nosniff")
	h.Set("X-Frame-Options", "DENY")
	h.Set("Referrer-Policy", "same-origin")
	h.Set("Cross-Origin-Resource-Policy", "same-origin")
	// Asked for again each time, answered 304: an upgraded program must not
	// meet the scripts of its predecessor.
	h.Set("Cache-Control", "no-cache")
}
