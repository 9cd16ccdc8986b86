package cli_test

import (
	"context"
	"crypto/tls"
	"encoding/hex"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"go.uber.org/zap"

	"teekms/cmd/kmsctl/internal/cli"
	"teekms/cmd/kmsctl/internal/kmstest"
	"teekms/cmd/kmsctl/internal/status"
	"teekms/internal/attest"
	"teekms/internal/attest/simtd"
	"teekms/internal/attest/tdx"
	"teekms/internal/attest/versioned"
	"teekms/internal/audit"
	"teekms/internal/audit/audittest"
	"teekms/internal/keys"
	"teekms/internal/ratls"
	"teekms/internal/registry"
	"teekms/internal/rpc"
	"teekms/internal/serve"
	"teekms/services/kms"
)

const adminToken = "correct-horse-battery"

// noImages is a cache of OS images that is empty.
type noImages struct{}

func (noImages) ClearCache(context.Context, string, string) error { return nil }

// adminListener is the admin listener of a KMS, and its database.
type adminListener struct {
	*httptest.Server
	store *audittest.Store
	log   *audit.Log
	// env are the environment variables of the tool, stdin what it reads.
	env   map[string]string
	stdin string
}

// newAdminListener serves until the test ends, with TLS where there is a
// certificate.
func newAdminListener(t *testing.T, certificate *tls.Certificate, change ...func(*audit.Config)) *adminListener {
	t.Helper()
	l := &adminListener{store: audittest.NewStore()}
	l.log = audittest.NewLog(t, l.store, change...)
	policy, err := registry.New(registry.Config{Store: l.store, Committer: kms.RegistryChanges(l.log)})
	if err != nil {
		t.Fatal(err)
	}
	admin, err := kms.NewAdmin(kms.AdminConfig{Images: noImages{}, Audit: l.log, Registry: policy})
	if err != nil {
		t.Fatal(err)
	}
	chain, err := rpc.New(rpc.Config{Log: zap.NewNop(), Access: kms.AdminAccess(), Errors: kms.AdminErrors()})
	if err != nil {
		t.Fatal(err)
	}
	mux, err := serve.NewMux(serve.MuxConfig{Service: admin.RPC(), Chain: chain})
	if err != nil {
		t.Fatal(err)
	}
	credentials, err := kms.NewCredentials(kms.CredentialsConfig{Token: keys.NewSecret([]byte(adminToken)), Log: zap.NewNop()})
	if err != nil {
		t.Fatal(err)
	}
	l.Server = httptest.NewUnstartedServer(credentials.Require(mux))
	l.Config.ErrorLog = zap.NewStdLog(zap.NewNop())
	if certificate != nil {
		l.TLS = &tls.Config{Certificates: []tls.Certificate{*certificate}, MinVersion: tls.VersionTLS13}
		l.StartTLS()
	} else {
		l.Start()
	}
	t.Cleanup(l.Close)
	l.env = map[string]string{"KMSCTL_ADMIN": l.URL, "KMSCTL_ADMIN_TOKEN": adminToken}
	return l
}

// run runs kmsctl with the environment of l.
func (l *adminListener) run(t *testing.T, args ...string) (code int, stdout, stderr string) {
	t.Helper()
	var out, errs buffer
	code = cli.Run(t.Context(), cli.Environment{
		Args: args, Stdin: strings.NewReader(l.stdin), Stdout: &out, Stderr: &errs, Now: time.Now, Version: "v1.2.3",
		Getenv: func(name string) string { return l.env[name] },
	})
	return code, out.String(), errs.String()
}

// must runs kmsctl registry, which has to do well, and returns what it prints.
func (l *adminListener) must(t *testing.T, line string, more ...string) string {
	t.Helper()
	args := append(append([]string{"registry"}, strings.Fields(line)...), more...)
	code, stdout, stderr := l.run(t, args...)
	if code != status.OK || stderr != "" {
		t.Fatalf("kmsctl %q = %d, %q", args, code, stderr)
	}
	return stdout
}

// rules are those in the database, as text.
func (l *adminListener) rules() []string {
	var rules []registry.Rule
	for r := range l.store.State().Rules {
		rules = append(rules, r)
	}
	registry.SortRules(rules)
	out := []string{}
	for _, r := range rules {
		out = append(out, strings.Join(strings.Fields(fmt.Sprint(r.Kind, " ", r.Subject, " ", r.Value)), " "))
	}
	return out
}

// names puts values for their names: a1 to a9 are application ids, h1 to h9
// hashes.
func names() *strings.Replacer {
	var pairs []string
	for i := 1; i <= 9; i++ {
		pairs = append(pairs, fmt.Sprintf("a%d", i), strings.Repeat(fmt.Sprintf("0%d", i), 20), fmt.Sprintf("h%d", i), strings.Repeat(fmt.Sprintf("0%d", i), 32))
	}
	return strings.NewReplacer(pairs...)
}

func TestRegistryCommandsChangeRules(t *testing.T) {
	l := newAdminListener(t, nil)
	steps := []struct {
		line string
		want string
	}{
		{"tcb add UpToDate OutOfDate", "tcb_status OutOfDate, tcb_status UpToDate"},
		{"tcb remove OutOfDate", "tcb_status UpToDate"},
		{"tcb remove --all --yes", ""},
		{"advisory add INTEL-SA-00837", "advisory INTEL-SA-00837"},
		{"advisory remove INTEL-SA-00837", ""},
		{"image add 0xh1 any", "os_image h1, os_image any"},
		{"image remove any", "os_image h1"},
		{"image remove --all --yes", ""},
		{"kms add h1 --device h2 --device any", "kms h1, kms_device h2, kms_device any"},
		{"kms remove h1", "kms_device h2, kms_device any"},
		{"device remove any", "kms_device h2"},
		{"device add h3", "kms_device h2, kms_device h3"},
		{"device remove --all --yes", ""},
		{"gateway set a1", "gateway a1"},
		{"gateway set any", "gateway any"},
		{"gateway remove", ""},
		{"app add 0xa1", "app a1"},
		{"app add a1 --compose-hash h1 --compose-hash h2 --device h3", "app a1, app_compose a1 h1, app_compose a1 h2, app_device a1 h3"},
		{"device add any --app a1", "app a1, app_compose a1 h1, app_compose a1 h2, app_device a1 h3, app_device a1 any"},
		{"device remove h3 --app 0xa1", "app a1, app_compose a1 h1, app_compose a1 h2, app_device a1 any"},
		{"app remove a1 --compose-hash h1 --device any", "app a1, app_compose a1 h2"},
		{"app remove a1 --yes", ""},
	}
	for i, s := range steps {
		got := l.must(t, names().Replace(s.line))
		if want := fmt.Sprintf("Revision %d, audit record %d\n", i+1, i); got != want {
			t.Errorf("kmsctl registry %s = %q, want %q", s.line, got, want)
		}
		if diff := cmp.Diff(names().Replace(s.want), strings.Join(l.rules(), ", ")); diff != "" {
			t.Fatalf("rules after kmsctl registry %s (-want +got)\n%s", s.line, diff)
		}
	}
	l.must(t, "tcb add UpToDate --expected-revision 22 --comment", "why not")
	records := l.store.Records(t)
	if last := records[len(records)-1]; last.Fields["comment"] != "why not" || last.Fields["by"] != "token" {
		t.Errorf("record %+v, want the comment", last)
	}
	if got := l.must(t, "tcb add any --json"); got != "{\"revision\":24,\"audit_seq\":23}\n" {
		t.Errorf("kmsctl registry tcb add --json = %q, want the answer", got)
	}
	code, _, stderr := l.run(t, "registry", "tcb", "add", "any", "--expected-revision", "0")
	if code != status.Failed || !strings.Contains(stderr, "expected_revision: the registry has another revision than expected") {
		t.Errorf("kmsctl registry tcb add --expected-revision 0 = %d, %q, want a conflict", code, stderr)
	}
}

func TestRegistryListsRules(t *testing.T) {
	l := newAdminListener(t, nil)
	if got := l.must(t, "list"); got != "Nothing is listed, at revision 0\n" {
		t.Errorf("kmsctl registry list = %q, want nothing", got)
	}
	l.must(t, names().Replace("app add a1 --compose-hash h1"))
	l.must(t, names().Replace("device add any --app a2"))
	l.must(t, "tcb add UpToDate")
	tests := []struct{ line, want string }{
		{"list", "app          –                                         a1                          revision 1\n" +
			"app_compose  a1  h1  revision 1\n" +
			"app_device   a2  any                                                               revision 2\n" +
			"tcb_status   –                                         UpToDate                                                          revision 3\n" +
			"4 rules, at revision 3\n"},
		{"app list", "app  a1  revision 1\n1 rule, at revision 3\n"},
		{"app list a1", "app_compose  a1  h1  revision 1\n1 rule, at revision 3\n"},
		{"app list a2", "app_device  a2  any  revision 2\n1 rule, at revision 3\nThe application is not registered: kmsctl registry app add does that\n"},
		{"device list", "Nothing is listed, at revision 3\n"},
		{"device list --app a2", "app_device  a2  any  revision 2\n1 rule, at revision 3\n"},
		{"tcb list", "tcb_status  UpToDate  revision 3\n1 rule, at revision 3\n"},
		{"tcb list --json", `{"rules":[{"kind":"tcb_status","subject":"","value":"UpToDate","revision":3}],"revision":3,"next_page_token":""}` + "\n"},
	}
	for _, tt := range tests {
		got := l.must(t, names().Replace(tt.line))
		// Columns are as wide as they have to be.
		if squeeze(got) != squeeze(names().Replace(tt.want)) {
			t.Errorf("kmsctl registry %s =\n%s, want\n%s", tt.line, got, names().Replace(tt.want))
		}
	}
	// More rules than a page has.
	state := l.store.State()
	for i := range 2500 {
		state.Rules[registry.Rule{Kind: registry.OSImage, Value: fmt.Sprintf("%064x", i)}] = 3
	}
	l.store.SetState(state)
	if got := l.must(t, "image list"); !strings.HasSuffix(got, "2500 rules, at revision 3\n") || strings.Count(got, "\n") != 2501 {
		t.Errorf("kmsctl registry image list has %d lines, want 2501", strings.Count(got, "\n"))
	}
}

func squeeze(s string) string {
	var lines []string
	for l := range strings.Lines(s) {
		lines = append(lines, strings.Join(strings.Fields(l), " "))
	}
	return strings.Join(lines, "\n")
}

func TestRegistryUsageErrors(t *testing.T) {
	l := newAdminListener(t, nil)
	tests := []struct{ args, want, hint string }{
		{"registry frobnicate", `unknown command "frobnicate"`, "kmsctl registry"},
		{"registry imge", "did you mean image?", "kmsctl registry"},
		{"registry image ad", `unknown command "ad"; did you mean add?`, "kmsctl registry image"},
		{"registry image add", "HASH|any is required", "kmsctl registry image add"},
		{"registry image add 00", `"00": 2 characters, want 64 hexadecimal digits`, "kmsctl registry image add"},
		{"registry image remove", "HASH|any is required", "kmsctl registry image remove"},
		{"registry image remove --all", "say --yes too", "kmsctl registry image remove"},
		{"registry image remove any --all --yes", "--all takes no arguments", "kmsctl registry image remove"},
		{"registry image list any", `unexpected argument "any"`, "kmsctl registry image list"},
		{"registry kms add h1 --device 00", `--device "00": 2 characters`, "kmsctl registry kms add"},
		{"registry tcb add uptodate", `Error: "uptodate" is none of UpToDate`, "kmsctl registry tcb add"},
		{"registry tcb add Revoked", "Revoked cannot be allowed", "kmsctl registry tcb add"},
		{"registry advisory add 00837", "is not of the form INTEL-SA-00837", "kmsctl registry advisory add"},
		{"registry app add", "exactly one APP_ID is required", "kmsctl registry app add"},
		{"registry app add any", `"any": 3 characters, want 40`, "kmsctl registry app add"},
		{"registry app add a1 --compose-hash 00", `--compose-hash "00": 2 characters`, "kmsctl registry app add"},
		{"registry app remove a1", "say --yes, or give --compose-hash or --device", "kmsctl registry app remove"},
		{"registry app list a1 a2", "at most one APP_ID", "kmsctl registry app list"},
		{"registry device add any --app 00", "--app: 2 characters, want 40", "kmsctl registry device add"},
		{"registry gateway set", "exactly one APP_ID, or any, is required", "kmsctl registry gateway set"},
		{"registry import", "exactly one FILE is required", "kmsctl registry import"},
		{"registry explain", "exactly one of --evidence and --last", "kmsctl registry explain"},
		{"registry explain --last 0", "--last: want 1 to 100", "kmsctl registry explain"},
		{"registry explain --last 1 --evidence a", "exactly one of", "kmsctl registry explain"},
		{"registry explain --last 1 --subject kms", "go with --evidence", "kmsctl registry explain"},
		{"registry explain --evidence a --subject gateway", `"gateway" is neither app nor kms`, "kmsctl registry explain"},
		{"registry explain --evidence a --trust-root b", "--trust-root needs", "kmsctl registry explain"},
		{"registry list --admin=", "", ""}, // the environment has it
		{"registry list --admin 127.0.0.1:8001", "--admin: ", "kmsctl registry list"},
		{"registry list --admin http://kms.example.com:8001", "over plain HTTP anyone on the way reads the token", "kmsctl registry list"},
		{"registry list --ca-cert b", "--ca-cert goes with https://", "kmsctl registry list"},
		{"registry list --timeout 0s", "--timeout must be positive", "kmsctl registry list"},
	}
	for _, tt := range tests {
		t.Run(tt.args, func(t *testing.T) {
			code, _, stderr := l.run(t, strings.Fields(names().Replace(tt.args))...)
			if tt.want == "" {
				if code != status.OK {
					t.Errorf("kmsctl %s = %d, %q, want no error", tt.args, code, stderr)
				}
				return
			}
			if code != status.Usage || !strings.Contains(stderr, tt.want) || !strings.HasSuffix(stderr, "Try '"+tt.hint+" --help'.\n") {
				t.Errorf("kmsctl %s = %d, %q, want status 2, %q and a hint at %s", tt.args, code, stderr, tt.want, tt.hint)
			}
		})
	}
	delete(l.env, "KMSCTL_ADMIN")
	if code, _, stderr := l.run(t, "registry", "list"); code != status.Usage || !strings.Contains(stderr, "--admin is required") {
		t.Errorf("kmsctl registry list = %d, %q, want that --admin is required", code, stderr)
	}
}

func TestAdminTokenIsReadFromWhereItIs(t *testing.T) {
	l := newAdminListener(t, nil)
	dir := t.TempDir()
	write := func(name, text string) string {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	tests := []struct {
		name, env, stdin string
		args             []string
		want             string
	}{
		{"environment", adminToken, "", nil, ""},
		{"file", "wrong", "", []string{"--admin-token-file", write("token", adminToken+"\n")}, ""},
		{"standard input", "", adminToken + "\n", []string{"--admin-token-file", "-"}, ""},
		{"nowhere", "", "", nil, "Admin.ListRegistry is answered with 401 Unauthorized; give the admin token with --admin-token-file"},
		{"wrong", "wrong", "", nil, "Admin.ListRegistry is answered with 401 Unauthorized: the admin token is wrong"},
		{"empty standard input", adminToken, "", []string{"--admin-token-file", "-"}, "--admin-token-file: standard input does not hold one line"},
		{"a file of two lines", "", "", []string{"--admin-token-file", write("two", "a\nb\n")}, "does not hold one line"},
		{"no file", "", "", []string{"--admin-token-file", dir + "/none"}, "--admin-token-file: open "},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			l.env["KMSCTL_ADMIN_TOKEN"], l.stdin = tt.env, tt.stdin
			code, _, stderr := l.run(t, append([]string{"registry", "list"}, tt.args...)...)
			if (code == status.OK) != (tt.want == "") || !strings.Contains(stderr, tt.want) {
				t.Errorf("kmsctl registry list = %d, %q, want %q", code, stderr, tt.want)
			}
			if strings.Contains(stderr, adminToken) {
				t.Errorf("the error shows the token: %q", stderr)
			}
		})
	}
}

func TestAdminListenerIsKnownByItsRoot(t *testing.T) {
	k := kmstest.New(t, simtd.Config{})
	other := kmstest.New(t, simtd.Config{})
	root := filepath.Join(k.Dir, "root-ca.crt")
	rpcCert := &tls.Certificate{Certificate: [][]byte{k.RPC}, PrivateKey: k.RPCKey}
	good := newAdminListener(t, rpcCert)
	tests := []struct {
		name string
		args []string
		want string
	}{
		{"the root", []string{"--ca-cert", root}, ""},
		{"another root", []string{"--ca-cert", filepath.Join(other.Dir, "root-ca.crt")}, "the server's certificate does not lead to --ca-cert: x509: "},
		{"the authorities of the system", nil, "; a KMS's own certificate is known by --ca-cert\n"},
		{"plain HTTP", []string{"--admin", strings.Replace(good.URL, "https://", "http://", 1)}, "; a listener with TLS is reached by https://\n"},
		{"no certificate", []string{"--ca-cert", k.Dir + "/none"}, "--ca-cert: open "},
		{"a certificate that is none", []string{"--ca-cert", k.Write(t, "junk.crt", []byte("x"))}, "--ca-cert: "},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			code, _, stderr := good.run(t, append([]string{"registry", "list"}, tt.args...)...)
			if (code == status.OK) != (tt.want == "") || !strings.Contains(stderr, tt.want) {
				t.Errorf("kmsctl registry list = %d, %q, want %q", code, stderr, tt.want)
			}
		})
	}
	// What the KMS gave to an application leads to the same root.
	app := newAdminListener(t, appCertificate(t, k))
	code, _, stderr := app.run(t, "registry", "list", "--ca-cert", root)
	if want := `the server's certificate is not a KMS's: its usage is "app:custom", want kms:rpc`; code != status.Failed || !strings.Contains(stderr, want) {
		t.Errorf("kmsctl registry list of an application = %d, %q, want %q", code, stderr, want)
	}
}

// appCertificate is what an application got from the KMS.
func appCertificate(t *testing.T, k *kmstest.KMS) *tls.Certificate {
	t.Helper()
	key, err := keys.NewKey()
	if err != nil {
		t.Fatal(err)
	}
	leaf, ca, err := keys.IssueApp(keys.AppRequest{
		Roots: k.Roots, CA: k.CA, AppID: unhex(t, names().Replace("a1")), Public: &key.PublicKey, Now: time.Now(),
	})
	if err != nil {
		t.Fatal(err)
	}
	return &tls.Certificate{Certificate: [][]byte{leaf, ca}, PrivateKey: key}
}

const authConfig = `{
  "gatewayAppId": "any", "chainId": 1,
  "osImages": ["0xh1"],
  "kms": {"mrAggregated": ["h2"], "devices": ["h3"]},
  "apps": {"0xa1": {"composeHashes": ["h4"]}}
}`

func TestRegistryImport(t *testing.T) {
	l := newAdminListener(t, nil)
	file := filepath.Join(t.TempDir(), "auth-config.json")
	write := func(text string) {
		if err := os.WriteFile(file, []byte(names().Replace(text)), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	write(authConfig)
	notes := names().Replace("Note: chainId decides nothing and is left out\n" +
		"Note: apps.a1: no device is listed, which allows any device there; here that is written any\n" +
		"Note: allowedTcbStatuses is absent, which is UpToDate\n")
	rules := strings.Split(names().Replace("app a1, app_compose a1 h4, app_device a1 any, gateway any, kms h2, kms_device h3, os_image h1, tcb_status UpToDate"), ", ")
	dry := notes
	for _, r := range rules {
		dry += "add " + r + "\n"
	}
	if diff := cmp.Diff(dry+"Would add 8 rules and remove 0, at revision 0\n", l.must(t, "import --dry-run", file)); diff != "" {
		t.Errorf("kmsctl registry import --dry-run (-want +got)\n%s", diff)
	}
	if n := len(l.store.Records(t)); n != 0 {
		t.Errorf("--dry-run left %d records, want none", n)
	}
	if diff := cmp.Diff(notes+"Added 8 rules, removed 0; revision 1\n", l.must(t, "import", file)); diff != "" {
		t.Errorf("kmsctl registry import (-want +got)\n%s", diff)
	}
	if diff := cmp.Diff(rules, l.rules()); diff != "" {
		t.Errorf("rules (-want +got)\n%s", diff)
	}
	if records := l.store.Records(t); len(records) != 1 || records[0].Fields["comment"] != "import of auth-config.json" {
		t.Errorf("records %+v, want one that names the file", records)
	}
	// The same again changes nothing.
	if got := l.must(t, "import --json", file); !strings.Contains(got, `"added": 0`) || !strings.Contains(got, `"revision": 1`) {
		t.Errorf("kmsctl registry import again = %s, want nothing added", got)
	}
	write(`{"osImages": ["h2"], "allowedTcbStatuses": ["UpToDate"]}`)
	code, _, stderr := l.run(t, "registry", "import", file)
	if code != status.Usage || !strings.Contains(stderr, "7 rules are not in the file and would be removed") && !strings.Contains(stderr, "rules are not in the file") {
		t.Errorf("kmsctl registry import = %d, %q, want that --yes is asked for", code, stderr)
	}
	l.must(t, "import --merge --comment more", file)
	if got := len(l.rules()); got != 9 {
		t.Errorf("%d rules after --merge, want 9", got)
	}
	code, _, stderr = l.run(t, "registry", "import", "--yes", "--expected-revision", "1", file)
	if code != status.Failed || !strings.Contains(stderr, "the registry has revision 2, not 1") {
		t.Errorf("kmsctl registry import --expected-revision 1 = %d, %q, want a conflict", code, stderr)
	}
	l.stdin = names().Replace(`{"osImages": ["h2"], "allowedTcbStatuses": ["UpToDate"]}`)
	l.must(t, "import --yes -")
	if diff := cmp.Diff(strings.Split(names().Replace("os_image h2, tcb_status UpToDate"), ", "), l.rules()); diff != "" {
		t.Errorf("rules (-want +got)\n%s", diff)
	}
	for text, want := range map[string]string{
		`{"osImage": []}`: `auth-config.json: unknown name "osImage"`,
		`{`:               "auth-config.json: not JSON",
	} {
		write(text)
		if code, _, stderr := l.run(t, "registry", "import", file); code != status.Failed || !strings.Contains(stderr, want) {
			t.Errorf("kmsctl registry import of %s = %d, %q, want %s", text, code, stderr, want)
		}
	}
}

func TestRegistryImportsMoreThanAChangeHolds(t *testing.T) {
	l := newAdminListener(t, nil)
	images := make([]string, 9000)
	for i := range images {
		images[i] = fmt.Sprintf("%064x", i)
	}
	l.stdin = string(kmstest.JSON(t, map[string]any{"osImages": images, "allowedTcbStatuses": []string{"UpToDate"}}))
	if got := l.must(t, "import -"); got != "Added 9001 rules, removed 0; revision 3\n" {
		t.Errorf("kmsctl registry import = %q, want 9001 rules in 3 changes", got)
	}
	l.stdin = `{"allowedTcbStatuses": ["UpToDate"]}`
	if got := l.must(t, "import --yes -"); got != "Added 0 rules, removed 9000; revision 6\n" {
		t.Errorf("kmsctl registry import = %q, want 9000 rules removed in 3 changes", got)
	}
}

func TestRegistryExport(t *testing.T) {
	l := newAdminListener(t, nil)
	file := filepath.Join(t.TempDir(), "auth-config.json")
	if err := os.WriteFile(file, []byte(names().Replace(authConfig)), 0o600); err != nil {
		t.Fatal(err)
	}
	l.must(t, "import", file)
	before := l.rules()
	if out := l.must(t, "export --out", file); out != "" {
		t.Errorf("kmsctl registry export --out prints %q, want nothing", out)
	}
	l.must(t, "app remove --yes "+names().Replace("a1"))
	l.must(t, "import --yes", file)
	if diff := cmp.Diff(before, l.rules()); diff != "" {
		t.Errorf("rules after export and import (-want +got)\n%s", diff)
	}
	l.must(t, "image add any")
	code, stdout, stderr := l.run(t, "registry", "export")
	text, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if code != status.OK || stdout != string(text) || stderr != "Note: os_image: any is left out, the file has no word for it\n" {
		t.Errorf("kmsctl registry export = %d, %s, %q, want the same file and a note", code, stdout, stderr)
	}
}

// evidenceFiles are the Evidence of one workload in every form.
func evidenceFiles(t *testing.T, k *kmstest.KMS) map[string]string {
	t.Helper()
	ev := k.Evidence
	a, err := versioned.New(ev)
	if err != nil {
		t.Fatal(err)
	}
	wire, err := a.Marshal()
	if err != nil {
		t.Fatal(err)
	}
	cert, err := ratls.NewCertificate(t.Context(), ratls.ClientCertConfig{Attester: k.TD, Generation: ratls.Gen8})
	if err != nil {
		t.Fatal(err)
	}
	old, err := ratls.NewCertificate(t.Context(), ratls.ClientCertConfig{Attester: k.TD, Generation: ratls.Gen1})
	if err != nil {
		t.Fatal(err)
	}
	quote := map[string]any{"quote": hex.EncodeToString(ev.Quote), "event_log": string(ev.EventLog), "vm_config": ev.VMConfig, "report_data": "00"}
	log := map[string]any{"quote": "0x" + hex.EncodeToString(ev.Quote), "event_log": json.RawMessage(ev.EventLog)}
	pemOf := func(c tls.Certificate) []byte {
		return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: c.Certificate[0]})
	}
	files := map[string][]byte{
		"quote-report.json": kmstest.JSON(t, quote), "log.json": kmstest.JSON(t, log),
		"attest.json":     kmstest.JSON(t, map[string]string{"attestation": hex.EncodeToString(wire)}),
		"attestation.bin": wire, "attestation.hex": []byte(hex.EncodeToString(wire) + "\n"),
		"app.crt": pemOf(cert), "app.der": cert.Certificate[0], "old.crt": pemOf(old),
	}
	paths := map[string]string{"bootstrap-info.json": filepath.Join(k.Dir, "bootstrap-info.json")}
	for name, data := range files {
		paths[name] = k.Write(t, name, data)
	}
	return paths
}

// Every form of Evidence is explained, and denied for the same reason until all
// of it is listed.
func TestRegistryExplainsEvidence(t *testing.T) {
	m := simtd.Measurements{AppID: unhex(t, names().Replace("a1")), ComposeHash: unhex(t, names().Replace("h1")), OSImageHash: unhex(t, names().Replace("h2"))}
	k := kmstest.New(t, simtd.Config{Measurements: m})
	files := evidenceFiles(t, k)
	claims, err := verifyEvidence(t, k)
	if err != nil {
		t.Fatal(err)
	}
	device := claims.DeviceID()
	aggregated := claims.MRAggregated(claims.RTMR[3])
	l := newAdminListener(t, nil)
	l.must(t, names().Replace("image add h2"))
	l.must(t, names().Replace("app add a1 --compose-hash h1 --device")+" "+hex.EncodeToString(device[:]))
	l.must(t, fmt.Sprintf("kms add %x --device %x", aggregated, device))
	explain := func(name string, want int) (string, string) {
		t.Helper()
		args := append([]string{"registry", "explain", "--evidence", files[name], "--vm-config", names().Replace(`{"os_image_hash":"h2"}`)}, trust(k)...)
		code, stdout, stderr := l.run(t, args...)
		if code != want {
			t.Errorf("kmsctl registry explain --evidence %s = %d, %q, want %d", name, code, stderr, want)
		}
		return stdout, stderr
	}
	who := map[bool]string{true: fmt.Sprintf("KMS %x", aggregated), false: names().Replace("application a1")}
	for name := range files {
		stdout, stderr := explain(name, status.Denied)
		if stderr != "Error: denied: TCB status is not allowed\n" ||
			!strings.HasPrefix(stdout, "✗ "+who[name == "bootstrap-info.json"]+": denied: TCB status is not allowed, at revision 3\n") ||
			!strings.Contains(stdout, "  ✗ tcb_status    seen   UpToDate\n                  wanted nothing is allowed: the list is empty\n") {
			t.Errorf("kmsctl registry explain --evidence %s = %s, %q, want it denied for its TCB status", name, stdout, stderr)
		}
	}
	l.must(t, "tcb add UpToDate")
	for name := range files {
		stdout, stderr := explain(name, status.OK)
		if stderr != "" || !strings.HasPrefix(stdout, "✓ "+who[name == "bootstrap-info.json"]+": allowed, at revision 4\n") || strings.Contains(stdout, "✗") {
			t.Errorf("kmsctl registry explain --evidence %s = %s, %q, want it allowed", name, stdout, stderr)
		}
	}
	record := append([]string{"registry", "explain", "--evidence", files["bootstrap-info.json"]}, trust(k)...)
	if code, _, stderr := l.run(t, record...); code != status.Denied || !strings.HasPrefix(stderr, "Note: nothing here names the OS image; --vm-config does\n") {
		t.Errorf("kmsctl registry explain of a record without --vm-config = %d, %q, want a note and a denial", code, stderr)
	}
	args := append([]string{"registry", "explain", "--evidence", files["app.crt"], "--subject", "kms", "--json"}, trust(k)...)
	code, stdout, _ := l.run(t, args...)
	var answer struct {
		Explanations []struct {
			Allowed  bool
			Workload struct {
				Subject string `json:"subject"`
				AppID   string `json:"app_id"`
			}
		}
	}
	if err := json.Unmarshal([]byte(stdout), &answer); err != nil || code != status.OK || len(answer.Explanations) != 1 || !answer.Explanations[0].Allowed ||
		answer.Explanations[0].Workload.Subject != "kms" || answer.Explanations[0].Workload.AppID != names().Replace("a1") {
		t.Errorf("kmsctl registry explain --json = %d, %s, want the KMS allowed", code, stdout)
	}
}

func unhex(t *testing.T, s string) []byte {
	t.Helper()
	b, err := hex.DecodeString(s)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func verifyEvidence(t *testing.T, k *kmstest.KMS) (*attest.Claims, error) {
	t.Helper()
	v, err := tdx.NewVerifier(tdx.Config{TrustAnchor: k.TD.Root(), Collateral: k.TD, Now: time.Now})
	if err != nil {
		t.Fatal(err)
	}
	return v.Verify(t.Context(), k.Evidence)
}

func TestRegistryExplainRefusesEvidence(t *testing.T) {
	k := kmstest.New(t, simtd.Config{})
	other := kmstest.New(t, simtd.Config{})
	revoked := kmstest.New(t, simtd.Config{})
	quote := k.Write(t, "quote.bin", k.Evidence.Quote)
	noLog := k.Write(t, "nolog.json", kmstest.JSON(t, map[string]string{"quote": hex.EncodeToString(k.Evidence.Quote)}))
	changed := k.Write(t, "changed.json", kmstest.JSON(t, map[string]string{
		"quote": hex.EncodeToString(k.Evidence.Quote), "event_log": strings.Replace(string(k.Evidence.EventLog), `"digest":"`, `"digest":"00`, 1),
	}))
	l := newAdminListener(t, nil)
	tests := []struct {
		name, file string
		trust      []string
		code       int
		want       string
	}{
		{"no file", k.Dir + "/none", trust(k), status.Failed, "reading Evidence: open "},
		{"not Evidence", k.Write(t, "junk", []byte("junk")), trust(k), status.Failed, "junk: neither JSON, nor a certificate, nor an attestation: "},
		{"another JSON", k.Write(t, "junk.json", []byte("{}")), trust(k), status.Failed, "junk.json: quote: "},
		{"a certificate without Evidence", filepath.Join(k.Dir, "rpc.crt"), trust(k), status.Failed, "the certificate carries no Evidence"},
		{"a quote alone", quote, trust(k), status.Failed, "its event log is missing"},
		{"a quote without event log", noLog, trust(k), status.NotVerified, "Evidence does not verify: event log: there is none"},
		{"an event log that was changed", changed, trust(k), status.NotVerified, "Evidence does not verify: event log: "},
		{"another root", filepath.Join(k.Dir, "bootstrap-info.json"), trust(other), status.NotVerified, "Evidence does not verify: "},
		{"no collateral", filepath.Join(k.Dir, "bootstrap-info.json"), []string{"--trust-root", k.TD.RootPath(), "--collateral", t.TempDir()}, status.NoCollateral, "nothing can be told without valid collateral: "},
		{"an application that is unknown", filepath.Join(revoked.Dir, "bootstrap-info.json"), trust(revoked), status.Denied, "denied: TCB status is not allowed"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			code, _, stderr := l.run(t, append([]string{"registry", "explain", "--evidence", tt.file}, tt.trust...)...)
			if code != tt.code || !strings.Contains(stderr, tt.want) {
				t.Errorf("kmsctl registry explain = %d, %q, want %d, %q", code, stderr, tt.code, tt.want)
			}
		})
	}
}

func TestRegistryExplainsDenials(t *testing.T) {
	l := newAdminListener(t, nil)
	if got := l.must(t, "explain --last 5"); got != "No denial is recorded\n" {
		t.Errorf("kmsctl registry explain --last = %q, want none", got)
	}
	deny := func(app, reason string) {
		fields := map[string]string{
			"subject": "app", "app_id": names().Replace(app), "compose_hash": names().Replace("h1"), "os_image_hash": names().Replace("h2"),
			"device_id": names().Replace("h3"), "tcb_status": "UpToDate", "advisory_ids": "INTEL-SA-00001,INTEL-SA-00002", "reason": reason,
		}
		if _, err := l.log.Append(t.Context(), audit.Event{Kind: audit.Denial, Fields: fields}); err != nil {
			t.Fatal(err)
		}
	}
	deny("a1", "Boot denied: app not registered")
	deny("a2", "Boot denied: \x1b[2Japp not registered")
	for _, line := range []string{"tcb add UpToDate", "advisory add any", "image add any", "app add a1 --compose-hash h1 --device any"} {
		l.must(t, names().Replace(line))
	}
	code, stdout, stderr := l.run(t, "registry", "explain", "--last", "2")
	want := names().Replace(`✗ application a2: denied: app not registered, at revision 4
  audit record 1: Boot denied: ` + "\uFFFD" + `[2Japp not registered
  ✓ tcb_status    seen   UpToDate
  ✓ advisory      seen   INTEL-SA-00001 (any)
  ✓ advisory      seen   INTEL-SA-00002 (any)
  ✓ os_image      seen   h2 (any)
  ✗ app           seen   a2
                  wanted an application that is registered
  ✗ app_compose   seen   h1
                  wanted nothing is allowed: the list is empty
  ✗ app_device    seen   h3
                  wanted nothing is allowed: the list is empty

✓ application a1: allowed, at revision 4
  audit record 0: Boot denied: app not registered
  ✓ tcb_status    seen   UpToDate
  ✓ advisory      seen   INTEL-SA-00001 (any)
  ✓ advisory      seen   INTEL-SA-00002 (any)
  ✓ os_image      seen   h2 (any)
  ✓ app           seen   a1
  ✓ app_compose   seen   h1
  ✓ app_device    seen   h3 (any)
`)
	if diff := cmp.Diff(want, stdout); diff != "" || code != status.Denied || stderr != "Error: denied: app not registered\n" {
		t.Errorf("kmsctl registry explain --last 2 = %d, %q (-want +got)\n%s", code, stderr, diff)
	}
	if code, _, stderr := l.run(t, "registry", "explain", "--last", "2", "--json"); code != status.Denied || stderr != "Error: denied: app not registered\n" {
		t.Errorf("kmsctl registry explain --last 2 --json = %d, %q, want it denied", code, stderr)
	}
}

func TestRegistryVerify(t *testing.T) {
	k := kmstest.New(t, simtd.Config{})
	identity, err := audit.IdentityOf(k.Roots)
	if err != nil {
		t.Fatal(err)
	}
	l := newAdminListener(t, nil, func(c *audit.Config) { c.Identity = identity })
	root := filepath.Join(k.Dir, "root-ca.crt")
	for _, line := range []string{"tcb add UpToDate", "app add a1 --compose-hash h1 --device any", "gateway set a1", "gateway set any", "image add h2", "app remove a1 --yes", "image add h3"} {
		l.must(t, names().Replace(line))
	}
	if got, want := l.must(t, "verify --root-ca", root), "  ✓ rules     4, those that the 7 records of the audit log lead to, at revision 7\n"; got != want {
		t.Errorf("kmsctl registry verify = %q, want %q", got, want)
	}
	honest := l.store.State()
	tests := []struct {
		name     string
		change   func(*audittest.State)
		stdout   string
		stderr   string
		code     int
		findings int
	}{
		{"a rule put back", func(s *audittest.State) { s.Rules[rule("app", "", "a1")] = 2 }, "  ✗ added     app a1: no change in the audit log leads to it\n", "not as the audit log has it: 1 rule\n", status.NotVerified, 1},
		{"a rule taken out", func(s *audittest.State) { delete(s.Rules, rule("os_image", "", "h3")) }, "  ✗ missing   os_image h3: added at revision 7, removed by nobody, and not there\n", "not as the audit log has it: 1 rule\n", status.NotVerified, 1},
		{"a rule of another revision", func(s *audittest.State) { s.Rules[rule("os_image", "", "h3")] = 5 }, "  ✗ revision  os_image h3: of revision 5, in the audit log of 7\n", "not as the audit log has it: 1 rule\n", status.NotVerified, 1},
		{"all rules as they were", func(s *audittest.State) {
			delete(s.Rules, rule("os_image", "", "h3"))
			s.Revision = 6
		}, "", "the registry is at revision 6, the audit log at 7: the rules were rolled back", status.NotVerified, 0},
		{"a revision that nobody made", func(s *audittest.State) { s.Revision = 8 }, "", "or has a revision that the audit log does not lead to", status.Failed, 0},
		{"a log that was changed", func(s *audittest.State) { s.Rows[3].Body, s.Rows[4].Body = s.Rows[4].Body, s.Rows[3].Body }, "", "reordered", status.NotVerified, 0},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			state := honest.Clone()
			tt.change(&state)
			l.store.SetState(state)
			code, stdout, stderr := l.run(t, "registry", "verify", "--root-ca", root)
			if code != tt.code || stdout != names().Replace(tt.stdout) || !strings.Contains(stderr, tt.stderr) || stderr == "" {
				t.Errorf("kmsctl registry verify = %d, %q, %q, want %d, %q, %q", code, stdout, stderr, tt.code, names().Replace(tt.stdout), tt.stderr)
			}
			if tt.findings == 0 {
				return
			}
			code, stdout, _ = l.run(t, "registry", "verify", "--root-ca", root, "--json")
			var out struct {
				Verified bool
				Findings []any
			}
			if err := json.Unmarshal([]byte(stdout), &out); err != nil || code != tt.code || out.Verified || len(out.Findings) != tt.findings {
				t.Errorf("kmsctl registry verify --json = %d, %s, want %d findings", code, stdout, tt.findings)
			}
		})
	}
	l.store.SetState(honest)
	if code, _, stderr := l.run(t, "registry", "verify"); code != status.Usage || !strings.Contains(stderr, "give --root-ca, --dir or --info") {
		t.Errorf("kmsctl registry verify = %d, %q, want to know whose", code, stderr)
	}
}

// rule is one with names for its values.
func rule(kind registry.Kind, subject, value string) registry.Rule {
	return registry.Rule{Kind: kind, Subject: names().Replace(subject), Value: names().Replace(value)}
}
