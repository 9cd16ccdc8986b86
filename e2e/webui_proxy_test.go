package e2e

import (
	"io"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"strings"
	"sync"
	"testing"
)

// network stands between the browser and the real service and behaves as
// networks do, when told.
type network struct {
	URL string

	mu     sync.Mutex // guards faults
	faults map[string]fault
}

// fault says what happens to one call. forward reaches the service and returns
// its answer.
type fault func(w http.ResponseWriter, forward func() *http.Response)

// newNetwork listens in front of the service at target.
func newNetwork(t *testing.T, target string) *network {
	t.Helper()
	to, err := url.Parse(target)
	if err != nil {
		t.Fatal(err)
	}
	proxy := &httputil.ReverseProxy{Rewrite: func(r *httputil.ProxyRequest) {
		r.SetURL(to)
		r.Out.Host = r.In.Host
	}}
	n := &network{faults: map[string]fault{}}
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		_, method, _ := strings.Cut(r.URL.Path, "/prpc/Onboard.")
		hit := n.faultOf(method)
		if hit == nil {
			proxy.ServeHTTP(w, r)
			return
		}
		hit(w, func() *http.Response {
			recorder := httptest.NewRecorder()
			proxy.ServeHTTP(recorder, r)
			return recorder.Result()
		})
	}))
	t.Cleanup(server.Close)
	n.URL = server.URL
	return n
}

// fault has every call of a method meet a fault, until heal: a browser sends a
// call again by itself when a connection it kept open is cut.
func (n *network) fault(method string, f fault) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.faults[method] = f
}

func (n *network) heal() {
	n.mu.Lock()
	defer n.mu.Unlock()
	clear(n.faults)
}

func (n *network) faultOf(method string) fault {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.faults[method]
}

// loseReply lets the call reach the service, waits for its answer, and cuts
// the line.
func loseReply(_ http.ResponseWriter, forward func() *http.Response) {
	forward().Body.Close()
	panic(http.ErrAbortHandler)
}

// loseRequest cuts the line before the service hears of the call.
func loseRequest(http.ResponseWriter, func() *http.Response) {
	panic(http.ErrAbortHandler)
}

// answerWith gives an answer of its own.
func answerWith(status int, contentType, body string) fault {
	return func(w http.ResponseWriter, _ func() *http.Response) {
		w.Header().Set("Content-Type", contentType)
		w.WriteHeader(status)
		io.WriteString(w, body)
	}
}

// holdUntil lets nothing through before the channel is closed.
func holdUntil(release <-chan struct{}) fault {
	return func(w http.ResponseWriter, forward func() *http.Response) {
		<-release
		resp := forward()
		defer resp.Body.Close()
		w.Header().Set("Content-Type", resp.Header.Get("Content-Type"))
		w.WriteHeader(resp.StatusCode)
		io.Copy(w, resp.Body)
	}
}
