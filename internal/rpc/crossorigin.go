package rpc

import (
	"net/http"
	"net/url"
	"slices"
	"strings"
)

// crossOriginText is what a refused page gets to read.
const crossOriginText = "cross-origin request refused"

// CrossOrigin refuses requests that another site's page made a browser send
// (status 403, {"error": "..."}): unsafe methods whose Sec-Fetch-Site or Origin
// names another origin, as http.CrossOriginProtection decides, and those with a
// Referer of another host. Paths in getAsPost change something on GET and are
// checked as if they were a POST. Clients that are no browsers send none of the
// three headers and pass.
func CrossOrigin(next http.Handler, getAsPost ...string) http.Handler {
	protection := http.NewCrossOriginProtection()
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		safe := r.Method == http.MethodGet || r.Method == http.MethodHead || r.Method == http.MethodOptions
		if safe && !slices.Contains(getAsPost, r.URL.Path) {
			next.ServeHTTP(w, r)
			return
		}
		checked := r
		if safe {
			post := *r
			post.Method = http.MethodPost
			checked = &post
		}
		if protection.Check(checked) != nil || foreignReferer(r) {
			WriteError(w, http.StatusForbidden, crossOriginText)
			return
		}
		next.ServeHTTP(w, r)
	})
}

// foreignReferer tells that a page of another host made the request. A Referer
// that cannot be read is foreign.
func foreignReferer(r *http.Request) bool {
	referer := r.Header.Get("Referer")
	if referer == "" {
		return false
	}
	u, err := url.Parse(referer)
	return err != nil || !strings.EqualFold(u.Host, r.Host)
}
