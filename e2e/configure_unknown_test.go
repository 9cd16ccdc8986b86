package e2e

import (
	"strings"
	"testing"
)

// TestUnknownSettings misspells a password on every face that takes JSON: it may
// not pass for none.
func TestUnknownSettings(t *testing.T) {
	t.Parallel()
	c := newConfiguring(t, devAuthority)
	const nested = `{"sqlite_enc": {"path": "data", "master_pasword": "password-canary"}}`
	const want = `unknown field \"master_pasword\"`
	c.post(t, "/sqlite-enc", `{"path": "data", "master_pasword": "password-canary"}`, "400", want)
	c.post(t, "/prpc/Provision.SetDatabase?json", nested, "400", want)
	c.post(t, "/prpc/SetDatabase", nested, "400", want)
	c.post(t, "/provision.v1.Provision/SetDatabase", nested, "400", want)
	c.post(t, "/prpc/Provision.Start?json", `{"clear_databse": true}`, "400", `unknown field \"clear_databse\"`)
	if status, body := curl(t, c.bootstrap+"/status"); status != "200" || !strings.Contains(body, `"database":null`) {
		t.Errorf("GET /status = %s %s, want no database", status, body)
	}
	c.keepsSecret(t, "password-canary")
}
